// An all_to_all in place: each pair of ranks swaps its two blocks where they lie, the lower rank
// the first half of them, the other one the rest, so that nothing is set aside and each link
// carries a block each way. Bytes over the link: half of each block is read and half of it written
// by each rank. Two meetings, as for a push; every byte is touched by one thread of one rank.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/push.h"

namespace zbccl::cuda {
namespace {

constexpr int kUnroll = 4;

template <typename Word>
__device__ __forceinline__ void swap_words(char* a, char* b, uint64_t bytes) {
  for (uint64_t at = threadIdx.x * sizeof(Word); at < bytes; at += blockDim.x * sizeof(Word)) {
    auto* const mine = reinterpret_cast<volatile Word*>(a + at);
    auto* const theirs = reinterpret_cast<volatile Word*>(b + at);
    const Word from_here = *mine;
    const Word from_there = *theirs;
    *mine = from_there;
    *theirs = from_here;
  }
}

// By the whole block; all loads of a thread are under way before its first store.
__device__ __forceinline__ void swap_tile(char* a, char* b, uint64_t bytes) {
  const uint64_t mix = reinterpret_cast<uint64_t>(a) | reinterpret_cast<uint64_t>(b);
  if ((mix & (kPackBytes - 1)) != 0) {
    const uint64_t all = mix | bytes;
    if (all % 8 == 0) return swap_words<uint64_t>(a, b, bytes);
    if (all % 4 == 0) return swap_words<uint32_t>(a, b, bytes);
    if (all % 2 == 0) return swap_words<uint16_t>(a, b, bytes);
    return swap_words<uint8_t>(a, b, bytes);
  }
  const uint64_t packs = bytes / kPackBytes;
  for (uint64_t base = threadIdx.x; base < packs;
       base += static_cast<uint64_t>(kUnroll) * blockDim.x) {
    Pack here[kUnroll];
    Pack there[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint64_t i = base + static_cast<uint64_t>(u) * blockDim.x;
      if (i >= packs) continue;
      there[u] = load_volatile(b + i * kPackBytes);
      here[u] = load_volatile(a + i * kPackBytes);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint64_t i = base + static_cast<uint64_t>(u) * blockDim.x;
      if (i >= packs) continue;
      store_plain(b + i * kPackBytes, here[u]);
      store_plain(a + i * kPackBytes, there[u]);
    }
  }
  const uint64_t tail = packs * kPackBytes;
  swap_words<uint8_t>(a + tail, b + tail, bytes - tail);
}

__global__ void __launch_bounds__(512)
    swap_blocks(const __grid_constant__ TeamView view, const __grid_constant__ SwapArgs args) {
  __shared__ Entries entries;
  const Turn turn = begin(view);
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (check_entry(view, args.call, turn, &entries)) {
      find_buffers(view, &entries);
      const uint64_t half = args.bytes / 2 / kPackBytes * kPackBytes;
      const uint64_t tile = static_cast<uint64_t>(blockDim.x) * kUnroll * kPackBytes;
      const uint64_t tiles = (args.bytes - half + tile - 1) / tile;
      const int peers = view.nranks - 1;
      // No two ranks begin with the same one.
      for (uint64_t item = blockIdx.x; item < tiles * peers; item += gridDim.x) {
        const int k = (view.rank + 1 + static_cast<int>(item % peers)) % view.nranks;
        const uint64_t first = view.rank < k ? 0 : half;
        const uint64_t bytes = view.rank < k ? half : args.bytes - half;
        const uint64_t at = item / peers * tile;
        if (at >= bytes) continue;
        swap_tile(args.data + k * args.bytes + first + at, entries.out[k] + first + at,
                  min(tile, bytes - at));
      }
      meet_at_exit(view, turn);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

}  // namespace

cudaError_t launch_swap(const TeamView& view, const SwapArgs& args, const LaunchShape& shape) {
  return start(swap_blocks, shape, 0, view, args);
}

cudaError_t load_swap() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, swap_blocks);
}

}  // namespace zbccl::cuda
