// One rank of `zbccl perf --device cuda`: measures what the options say, with the others.
#pragma once

#include <cstdint>
#include <zbccl/zbccl.hpp>

#include "perf/options.h"

namespace zbccl::tools {

struct CudaMember {
  Communicator& control;  // of the same ranks, on host memory
  Communicator& comm;     // on this rank's device
  int device = 0;         // its ordinal, which is current
  double init_ms = 0;     // how long this rank took to make `comm`
};

// Collective. Rank 0 prints and writes the JSON file. Returns how many elements were wrong on all
// ranks.
uint64_t run_cuda_bench(const CudaMember& member, const PerfOptions& options);

}  // namespace zbccl::tools
