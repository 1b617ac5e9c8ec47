// Copies of a tile by a whole block, at any alignment.
#pragma once

#include "kernels/cuda/sync.cuh"

namespace zbccl::cuda {

template <typename Word>
__device__ __forceinline__ void copy_words(char* to, const char* from, uint64_t bytes) {
  for (uint64_t at = threadIdx.x * sizeof(Word); at < bytes; at += blockDim.x * sizeof(Word)) {
    *reinterpret_cast<volatile Word*>(to + at) = *reinterpret_cast<const volatile Word*>(from + at);
  }
}

// kUnroll packs of each thread are under way at once.
template <int kUnroll>
__device__ __forceinline__ void copy_tile(char* to, const char* from, uint64_t bytes) {
  const uint64_t mix = reinterpret_cast<uint64_t>(to) | reinterpret_cast<uint64_t>(from);
  if ((mix & (kPackBytes - 1)) != 0) {
    const uint64_t all = mix | bytes;
    if (all % 8 == 0) return copy_words<uint64_t>(to, from, bytes);
    if (all % 4 == 0) return copy_words<uint32_t>(to, from, bytes);
    if (all % 2 == 0) return copy_words<uint16_t>(to, from, bytes);
    return copy_words<uint8_t>(to, from, bytes);
  }
  const uint64_t packs = bytes / kPackBytes;
  for (uint64_t base = threadIdx.x; base < packs;
       base += static_cast<uint64_t>(kUnroll) * blockDim.x) {
    Pack v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint64_t i = base + static_cast<uint64_t>(u) * blockDim.x;
      if (i < packs) v[u] = load_volatile(from + i * kPackBytes);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint64_t i = base + static_cast<uint64_t>(u) * blockDim.x;
      if (i < packs) store_plain(to + i * kPackBytes, v[u]);
    }
  }
  const uint64_t tail = packs * kPackBytes;
  copy_words<uint8_t>(to + tail, from + tail, bytes - tail);
}

}  // namespace zbccl::cuda
