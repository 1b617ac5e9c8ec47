// Landing memory whose data carries its own validity: a slot is all poison (words of ones, which is
// a NaN in every type that uses it) until its data is there. Three slots take turns: the one used
// in an operation is cleared in the next, and written again by peers in the one after that, which
// no peer enters before this rank has left the one in between.
#pragma once

#include "kernels/cuda/sync.cuh"

namespace zbccl::cuda {

__device__ __forceinline__ char* poison_slot(const TeamView& view, int rank, uint32_t slot) {
  return reinterpret_cast<char*>(view.control[rank]) + view.shape.poison_offset +
         slot * view.shape.slot_bytes;
}

// By `stride` threads of the grid together, of which this is number `first`.
__device__ __forceinline__ void clear_previous_slot(const TeamView& view, const Turn& turn,
                                                    uint32_t first, uint32_t stride) {
  char* const slot = poison_slot(view, view.rank, (turn.slot + kPoisonSlots - 1) % kPoisonSlots);
  const Pack poison = {{~0u, ~0u, ~0u, ~0u}};
  for (uint32_t i = first; i < turn.dirty; i += stride) {
    store_plain(slot + static_cast<uint64_t>(i) * kPackBytes, poison);
  }
}

// Reads the packs at base + k * stride for all ranks k, again until none of them is poison; rank
// `skip` is left out. False if the wait was given up.
template <DataType kType, int kRanks>
__device__ __forceinline__ bool await_packs(Waiter& waiter, const char* base, uint64_t stride,
                                            int nranks, int skip, Pack (&packs)[kRanks]) {
  for (;;) {
#pragma unroll
    for (int k = 0; k < kRanks; ++k) {
      if (k < nranks && k != skip)
        packs[k] = load_volatile(base + static_cast<uint64_t>(k) * stride);
    }
    int missing = -1;
#pragma unroll
    for (int k = 0; k < kRanks; ++k) {
      if (k < nranks && k != skip && Vec<kType>::poisoned(packs[k])) missing = k;
    }
    if (missing < 0) return true;
    if (!waiter.again(static_cast<uint32_t>(missing), kAtData, 0, 0)) return false;
  }
}

// Sums one pack of every rank in rank order.
template <DataType kType, int kRanks, bool kSum>
__device__ __forceinline__ Pack reduce_packs(const Pack (&packs)[kRanks], int nranks, RedOp op) {
  using V = Vec<kType>;
  const RedOp how = kSum ? RedOp::kSum : op;
  typename V::Sum sum;
  V::first(sum, packs[0]);
#pragma unroll
  for (int k = 1; k < kRanks; ++k) {
    if (k < nranks) V::add(sum, packs[k], how);
  }
  return V::finish(sum, how, nranks);
}

}  // namespace zbccl::cuda
