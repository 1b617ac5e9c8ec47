// What every launch of a kernel takes. Plain data; included by host code and by kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/team_view.h"

namespace zbccl::cuda {

// A buffer of this rank.
struct Buffer {
  char* data = nullptr;
  uint64_t bytes = 0;
};

struct EntryCall {
  // What this rank calls, for each peer, and how many bytes it expects to hear of from each.
  Entry entry[kMaxRanks] = {};
  uint64_t expected[kMaxRanks] = {};
};

// Threads beyond the plan's that kernels of a flight or two have in each block, to watch entries.
#ifdef __CUDACC__
__host__ __device__
#endif
    inline constexpr int
    watchers(int nranks) {
  return (nranks * kEntryWords + 31) / 32 * 32;
}

struct LaunchShape {
  int blocks = 1;
  int threads = 512;
  cudaStream_t stream = nullptr;
  bool overlap = true;  // programmatic dependent launch
};

}  // namespace zbccl::cuda
