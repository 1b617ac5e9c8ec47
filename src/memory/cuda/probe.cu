#include "memory/cuda/probe.h"

namespace zbccl::cuda {
namespace {

// One warp, two words each: 1 KiB over the link and no synchronisation with the owner.
__global__ void probe(ProbeCall call) {
  uint32_t misread = 0;
  uint32_t lost = 0;
  for (uint32_t i = threadIdx.x; i < kProbeWords; i += 32) {
    // Volatile: of memory of another GPU, and not from a cache.
    const uint64_t seen = *static_cast<const volatile uint64_t*>(call.pattern + i);
    misread += seen != probe_word(call.seed, i) ? 1 : 0;
    *static_cast<volatile uint64_t*>(call.slot + i) = probe_word(call.token, i);
  }
  __threadfence_system();
  for (uint32_t i = threadIdx.x; i < kProbeWords; i += 32) {
    const uint64_t back = *static_cast<const volatile uint64_t*>(call.slot + i);
    lost += back != probe_word(call.token, i) ? 1 : 0;
  }
  for (int step = 16; step > 0; step /= 2) {
    misread += __shfl_down_sync(0xffffffffu, misread, step);
    lost += __shfl_down_sync(0xffffffffu, lost, step);
  }
  if (threadIdx.x != 0) return;
  call.wrong[0] = misread;
  call.wrong[1] = lost;
}

}  // namespace

cudaError_t load_probe() {
  cudaFuncAttributes unused;
  return cudaFuncGetAttributes(&unused, probe);
}

cudaError_t launch_probe(const ProbeCall& call, cudaStream_t stream) {
  probe<<<1, 32, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace zbccl::cuda
