// One rank of `zbccl perf`: measures what the options say, with the others.
#pragma once

#include <cstdint>
#include <zbccl/zbccl.hpp>

#include "perf/options.h"

namespace zbccl::tools {

// Collective. Rank 0 prints and writes the JSON file. Returns how many elements were wrong on all
// ranks.
uint64_t run_bench(Communicator& comm, const PerfOptions& options);

}  // namespace zbccl::tools
