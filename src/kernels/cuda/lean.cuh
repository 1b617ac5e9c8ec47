// What kernels in which instructions count have in common: one warp behind the others shows this
// rank's call to all, in one block, and watches theirs, at addresses that it has found before the
// kernel's turn has come. The others move data, a pack for each thread.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/reduce.h"

namespace zbccl::cuda {

inline constexpr int kHeralds = 32;  // threads
inline constexpr int kMostWorkers = 512;

// For teams of up to kRanks.
template <int kRanks>
class Herald {
  static constexpr int kEach = (kRanks * kEntryWords + kHeralds - 1) / kHeralds;

 public:
  // The warp's lane; in other warps it does nothing.
  __device__ __forceinline__ Herald(const TeamView& view, const EntryCall& call, int nranks)
      : view_(view),
        call_(call),
        peer_(static_cast<int>(threadIdx.x) % 32 / 2),
        waits_(peer_ < nranks && peer_ != view.rank) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bool counts = lane % 2 != 0;
    half_ = view.control[view.rank]->entries[0][0] + peer_ * kEntryWords + lane % 2 * 2;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int word = lane + i * kHeralds;
      to_[i] = nullptr;
      if (blockIdx.x != 0 || word >= nranks * kEntryWords) continue;
      const int peer = word / kEntryWords;
      value_[i] = reinterpret_cast<const uint32_t*>(&call.entry[peer])[word % kEntryWords];
      to_[i] = &view.control[peer]->entries[0][view.rank][word % kEntryWords];
    }
    if (!waits_) return;
    const Entry& entry = call.entry[peer_];
    const uint64_t count = call.expected[peer_];
    low_ = counts ? static_cast<uint32_t>(count) : entry.operation;
    high_ = counts ? static_cast<uint32_t>(count >> 32) : entry.shape;
  }

  __device__ __forceinline__ void show(uint32_t epoch) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (to_[i] == nullptr) continue;
      store_relaxed(to_[i] + (epoch & 1) * kParity, static_cast<uint64_t>(value_[i]) << 32 | epoch);
    }
  }

  // Lane l waits for a half of what rank l / 2 shows. Not 0: that calls something else, or does not
  // come; both have been reported.
  __device__ __forceinline__ int watch(uint32_t epoch) const {
    if (!waits_) return 0;
    const uint64_t* const half = half_ + (epoch & 1) * kParity;
    Waiter waiter(view_, epoch);
    Pack seen;
    while (seen = load_volatile(half), seen.w[0] != epoch || seen.w[2] != epoch) {
      if (!waiter.again(static_cast<uint32_t>(peer_), kAtEntry, epoch, seen.w[0])) return 1;
    }
    if (seen.w[1] == low_ && seen.w[3] == high_) return 0;
    report_difference(view_, call_, epoch, peer_);
    return 1;
  }

 private:
  static constexpr int kParity = kMaxRanks * kEntryWords;

  const TeamView& view_;
  const EntryCall& call_;
  const int peer_;
  const bool waits_;
  const uint64_t* half_;
  uint32_t low_ = 0;
  uint32_t high_ = 0;
  uint64_t* to_[kEach];
  uint32_t value_[kEach];
};

// This thread's number among those of the grid that move data.
struct Worker {
  int of_block;  // how many there are in a block
  bool works;
  uint32_t number;
  uint32_t stride;  // all of them

  __device__ __forceinline__ Worker()
      : of_block(static_cast<int>(blockDim.x) - kHeralds),
        works(static_cast<int>(threadIdx.x) < of_block),
        number(blockIdx.x * static_cast<uint32_t>(of_block) + threadIdx.x),
        stride(gridDim.x * static_cast<uint32_t>(of_block)) {}
};

// Arenas are small, so that 32 bits hold every offset.
__device__ __forceinline__ uint32_t slot_offset(const TeamView& view, const Turn& turn) {
  return static_cast<uint32_t>(view.shape.poison_offset) +
         turn.slot * static_cast<uint32_t>(view.shape.slot_bytes);
}
__device__ __forceinline__ char* arena_of(const TeamView& view, int rank) {
  return reinterpret_cast<char*>(view.control[rank]);
}

inline bool is_aligned(const Buffer& buffer) {
  return (reinterpret_cast<uintptr_t>(buffer.data) | buffer.bytes) % kPackBytes == 0;
}
inline uint64_t workers_of(const LaunchShape& shape) {
  return static_cast<uint64_t>(shape.blocks) * static_cast<uint64_t>(shape.threads);
}
inline LaunchShape with_heralds(LaunchShape shape) {
  shape.threads += kHeralds;
  return shape;
}

// Calls use.template operator()<type, ranks>() for the instance that adds up; false without one.
template <typename Use>
bool with_lean_instance(DataType type, int nranks, Use&& use) {
  const auto for_ranks = [&]<DataType kType>() {
    switch (nranks) {
      case 2: use.template operator()<kType, 2>(); return true;
      case 4: use.template operator()<kType, 4>(); return true;
      case 8: use.template operator()<kType, 8>(); return true;
      default: return false;
    }
  };
  switch (type) {
    case DataType::kF32: return for_ranks.template operator()<DataType::kF32>();
    case DataType::kF16: return for_ranks.template operator()<DataType::kF16>();
    case DataType::kBf16: return for_ranks.template operator()<DataType::kBf16>();
    default: return false;
  }
}

// Loads every instance; `use` gives the code of loading one.
template <typename Use>
cudaError_t for_each_lean_instance(Use&& use) {
  cudaError_t code = cudaSuccess;
  for (const DataType type : {DataType::kF32, DataType::kF16, DataType::kBf16}) {
    for (const int ranks : {2, 4, 8}) {
      with_lean_instance(type, ranks, [&]<DataType kType, int kRanks>() {
        const cudaError_t loaded = use.template operator()<kType, kRanks>();
        if (code == cudaSuccess) code = loaded;
      });
    }
  }
  return code;
}

}  // namespace zbccl::cuda
