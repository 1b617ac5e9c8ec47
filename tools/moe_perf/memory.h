// What DeepEP keeps on each rank only to communicate, by its own formulas. Any thread.
#pragma once

#include <cstdint>

#include "moe_perf/shape.h"

namespace zbccl::tools {

struct PeerMemory {
  uint64_t normal = 0;       // version 1, intranode, with 20 SMs
  uint64_t low_latency = 0;  // version 1
  uint64_t elastic = 0;      // version 2, intranode: at least this
};
PeerMemory deep_ep_memory(const MoeShape& shape);

}  // namespace zbccl::tools
