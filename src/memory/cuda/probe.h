// Trying whether a mapping of a peer's memory carries what is written and read: a pattern that the
// owner's GPU holds is read through it, and a token that is written through it is looked for by
// the owner. The launch header of probe.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#ifdef __CUDACC__
#define ZBCCL_PROBE_BOTH __host__ __device__
#else
#define ZBCCL_PROBE_BOTH
#endif

namespace zbccl::cuda {

inline constexpr uint32_t kProbeWords = 64;

// Word i of what a number stands for: bits that no broken path brings about by chance.
ZBCCL_PROBE_BOTH constexpr uint64_t probe_word(uint64_t number, uint64_t i) {
  uint64_t x = number + (i + 1) * 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// What the kernel is to do, on the GPU that holds the mapping.
struct ProbeCall {
  const uint64_t* pattern = nullptr;  // the owner wrote it: word i is probe_word(seed, i)
  uint64_t seed = 0;
  uint64_t* slot = nullptr;  // gets probe_word(token, i)
  uint64_t token = 0;
  uint32_t* wrong = nullptr;  // pinned: words of the pattern, then of the slot read back, that are
                              // not what they should be
};

// Loads the kernel, which must not happen while another one spins.
cudaError_t load_probe();
cudaError_t launch_probe(const ProbeCall& call, cudaStream_t stream);

}  // namespace zbccl::cuda
