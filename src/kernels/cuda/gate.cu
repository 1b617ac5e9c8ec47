// Holds a stream. One thread, which sleeps between looks, so that it takes nothing from other
// kernels.
#include "kernels/cuda/gate.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sync.cuh"

namespace zbccl::cuda {
namespace {

constexpr uint32_t kNapNanoseconds = 500;

__global__ void gate(const uint32_t* done, uint32_t number) {
  while (static_cast<int32_t>(load_acquire(done) - number) < 0) __nanosleep(kNapNanoseconds);
}

}  // namespace

cudaError_t launch_gate(const uint32_t* done, uint32_t number, cudaStream_t stream) {
  LaunchShape shape;
  shape.threads = 1;
  shape.stream = stream;
  shape.overlap = false;
  return start(gate, shape, 0, done, number);
}

cudaError_t load_gate() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, gate);
}

}  // namespace zbccl::cuda
