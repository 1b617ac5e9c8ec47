// How far the sums of all_reduce_quantized are from exact ones. One thread.
#pragma once

#include <cstddef>
#include <functional>
#include <zbccl/zbccl.hpp>

#include "perf/operation.h"

namespace zbccl::tools {

// Relative to the root mean square of the exact sums.
struct CodeError {
  double rms = 0;
  double largest = 0;
};

// Collective over `control`, which is on host memory. Standard normals, other ones on each rank,
// rounded to the type, at most 65,536 of them; `run` sums `bytes` bytes of host memory by codes.
CodeError measure_code_error(
    Communicator& control, const CallSpec& spec, size_t count,
    const std::function<void(const void* in, void* out, size_t bytes)>& run);

}  // namespace zbccl::tools
