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

struct LaunchShape {
  int blocks = 1;
  int threads = 512;
  cudaStream_t stream = nullptr;
};

}  // namespace zbccl::cuda
