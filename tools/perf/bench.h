// One rank of `zbccl perf`: measures what the options say, with the others.
#pragma once

#include <cstdint>
#include <zbccl/zbccl.hpp>

#include "perf/options.h"

namespace zbccl::tools {

// Collective. Rank 0 prints and writes the JSON file. Returns how many elements were wrong on all
// ranks. `init_ms`: how long this rank took to make its communicator.
uint64_t run_bench(Communicator& comm, const PerfOptions& options, double init_ms);

}  // namespace zbccl::tools
