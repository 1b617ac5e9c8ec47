// Launch of what holds a stream until the host has done something. Host code includes this.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace zbccl::cuda {

// What is enqueued next on the stream begins once *done has come to `number`, which may wrap, and
// sees what was in the GPU's memory by then. `done` is pinned host memory. The host is to see to it
// that it comes to that, whatever fails.
cudaError_t launch_gate(const uint32_t* done, uint32_t number, cudaStream_t stream);
cudaError_t load_gate();

}  // namespace zbccl::cuda
