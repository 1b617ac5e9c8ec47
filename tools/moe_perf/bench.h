// One rank of `zbccl moe`: measures what the options say, with the others.
#pragma once

#include <cstdint>
#include <zbccl/zbccl.hpp>

#include "moe_perf/options.h"

namespace zbccl::tools {

// Collective. Rank 0 prints and writes the JSON file. Returns how many elements were wrong on all
// ranks.
uint64_t run_moe_bench(Communicator& comm, const MoeOptions& options);

}  // namespace zbccl::tools
