// Chooses among the instances of the kernels that normalise rows: teams of 2, 4 and 8 have
// instances of their own for bf16; f16 and other teams share one.
#pragma once

#include "kernels/cuda/fused.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/rms_norm.cuh"

namespace zbccl::cuda {

inline constexpr int kNormThreads = 512;  // at most, of those that have elements

// Calls use.template operator()<type, ranks, packs of a thread>().
template <typename Use>
cudaError_t choose_norm(DataType type, int nranks, int hidden, Use&& use) {
  const int packs = hidden / 8;
  const auto for_packs = [&]<DataType kType, int kTeam>() {
    if (packs <= kNormThreads) return use.template operator()<kType, kTeam, 1>();
    if (packs <= 2 * kNormThreads) return use.template operator()<kType, kTeam, 2>();
    return use.template operator()<kType, kTeam, 4>();
  };
  if (hidden > kMostHidden) return cudaErrorInvalidValue;
  if (type == DataType::kF16) return for_packs.template operator()<DataType::kF16, 0>();
  if (type != DataType::kBf16) return cudaErrorInvalidValue;
  switch (nranks) {
    case 2: return for_packs.template operator()<DataType::kBf16, 2>();
    case 4: return for_packs.template operator()<DataType::kBf16, 4>();
    case 8: return for_packs.template operator()<DataType::kBf16, 8>();
    default: return for_packs.template operator()<DataType::kBf16, 0>();
  }
}

template <typename Use>
cudaError_t for_each_norm(Use&& use) {
  for (const DataType type : {DataType::kBf16, DataType::kF16}) {
    for (const int ranks : {2, 4, 8, 3}) {
      for (const int hidden : {4096, 8192, 16384}) {
        if (const cudaError_t code = choose_norm(type, ranks, hidden, use); code != cudaSuccess) {
          return code;
        }
      }
    }
  }
  return cudaSuccess;
}

// Adds up one pack of every rank: get(k, &pack) gives rank k's, or false. All of them are asked for
// at once, and one after another where the number of ranks is not known.
template <DataType kType, int kTeam, typename Get, typename GetAll>
__device__ __forceinline__ bool sum_packs(int nranks, Pack* sum, const Get& get,
                                          const GetAll& get_all) {
  using V = Vec<kType>;
  if constexpr (kTeam != 0) {
    Pack v[kTeam];
    if (!get_all(v)) return false;
    *sum = reduce_packs<kType, kTeam, true>(v, nranks, RedOp::kSum);
  } else {
    Pack v;
    if (!get(0, &v)) return false;
    *sum = v;  // of one rank it is the pack itself
    if (nranks == 1) return true;
    typename V::Sum total;
    V::first(total, v);
#pragma unroll 1
    for (int k = 1; k < nranks; ++k) {
      if (!get(k, &v)) return false;
      V::add(total, v, RedOp::kSum);
    }
    *sum = V::finish(total, RedOp::kSum, nranks);
  }
  return true;
}

// The same of packs that land at base + k * stride.
template <DataType kType, int kTeam>
__device__ __forceinline__ bool sum_landed(Waiter& waiter, const char* base, int64_t stride,
                                           int nranks, Pack* sum) {
  return sum_packs<kType, kTeam>(
      nranks, sum,
      [&](int k, Pack* v) {
        for (;;) {
          *v = load_volatile(base + k * stride);
          if (!Vec<kType>::poisoned(*v)) return true;
          if (!waiter.again(static_cast<uint32_t>(k), kAtData, 0, 0)) return false;
        }
      },
      [&](auto& v) { return await_packs<kType>(waiter, base, stride, nranks, -1, v); });
}

}  // namespace zbccl::cuda
