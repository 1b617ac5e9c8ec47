// The factor of an operator that users make, on a GPU.
#pragma once

#include <array>
#include <cstddef>

#include "types.h"

namespace zbccl::nccl {

struct Factor {
  const void* place = nullptr;                    // where a kernel reads one element, or null:
  alignas(8) std::array<std::byte, 8> bits = {};  // its bytes
};

// Enqueues to[i] = factor * from[i] for memory of the current GPU, rounded as multiply() rounds.
// In place: to == from. False where CUDA refuses, or in a build without it.
bool launch_scale(const void* from, void* to, size_t count, ncclDataType_t type,
                  const Factor& factor, cudaStream_t stream);
// Loads its kernels on the current GPU: later another one may be running that waits for other
// ranks.
bool load_scale();

}  // namespace zbccl::nccl
