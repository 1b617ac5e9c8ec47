// Residual addition and RMSNorm of rows whose reduced elements a block already holds in registers,
// and their quantisation to e4m3. A block takes a row at a time, with one meeting of its threads in
// each; traffic: residual in and out, the outputs, and the weight once for a block.
//
//   r = x + residual                            rounded to the type
//   m = the sum of r[i]^2 / hidden + epsilon
//   y = (r * (1 / sqrt(m))) * w                 w: the weight, or 1 + the weight
//
// Every step is one IEEE operation in f32, and y is rounded once, to the type or, scaled, to e4m3.
// The squares are added in an order that neither the number of threads nor of blocks changes: the
// eight elements of a pack from the first to the last; the 32 packs of a run by halves (16 apart,
// 8, 4, 2, 1); of the runs each 32nd one after another, and these 32 sums by halves.
#pragma once

#include "kernels/cuda/norm_spec.h"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/sync.cuh"

namespace zbccl::cuda {

// Dynamic or static shared memory that a block brings.
__host__ __device__ constexpr int norm_shared_floats(int hidden) {
  return 2 * ((hidden / 8 + 31) / 32);
}

// Of `threads` threads, a multiple of 32, the t-th has packs t, t + threads, ..., at most kPacks;
// all together they have at least a row. A block may have more threads, in whole warps behind
// these. All threads of a block take part in every call.
template <DataType kType, int kPacks>
class RowNorm {
  using V = Vec<kType>;
  static_assert(kType == DataType::kBf16 || kType == DataType::kF16);
  static constexpr int kLanes = V::kLanes;

 public:
  // `shared`: norm_shared_floats(hidden) floats.
  __device__ __forceinline__ RowNorm(const NormSpec& spec, float* shared, int threads)
      : spec_(spec),
        shared_(shared),
        packs_(spec.hidden / kLanes),
        threads_(threads),
        first_(static_cast<int>(threadIdx.x) < threads ? static_cast<int>(threadIdx.x) : kNobody) {
    if constexpr (kKeeps) {
#pragma unroll
      for (int j = 0; j < kPacks; ++j) {
        if (mine(j)) weight_[j] = weight_of(j);
      }
    }
  }

  // Whether this thread has a j-th pack, and which of the row it is.
  __device__ __forceinline__ bool mine(int j) const { return index(j) < packs_; }
  __device__ __forceinline__ int index(int j) const { return first_ + j * threads_; }
  __device__ __forceinline__ int packs() const { return packs_; }

  // Loads what a row needs beside x, before x has arrived.
  __device__ __forceinline__ void prefetch(int64_t row) {
    if constexpr (kKeeps) {
      if (spec_.residual == nullptr) return;
#pragma unroll
      for (int j = 0; j < kPacks; ++j) {
        if (mine(j)) residual_[j] = residual_of(row, j);
      }
    }
  }

  // x: this thread's packs of the row that was prefetched; those beyond it are not looked at. The
  // row goes to each of `count` targets, which all want the same.
  __device__ __forceinline__ void finish(const Pack (&x)[kPacks], int64_t row,
                                         const NormTarget* targets, int count) {
    Pack r[kPacks];
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      r[j] = Pack{};
      if (!mine(j)) continue;
      r[j] = x[j];
      if (spec_.residual != nullptr) {
        r[j] = sum_of(x[j], kKeeps ? residual_[kKeeps ? j : 0] : residual_of(row, j));
      }
      store_rows(kResidualOut, targets, count, row, j, r[j]);
    }
    const float factor = factor_of(r);
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      typename V::Sum y;
      if (mine(j)) {
        y = normalised(r[j], kKeeps ? weight_[kKeeps ? j : 0] : weight_of(j), factor);
        if (targets[0].data[kOut] != nullptr) {
          store_rows(kOut, targets, count, row, j, V::finish(y, RedOp::kSum, 2));
        }
      } else {
#pragma unroll
        for (int i = 0; i < kLanes; ++i) y.lane[i] = 0;
      }
      if (spec_.form != NormCodes::kNone) write_codes(y, j, row, targets, count);
    }
  }

 private:
  static constexpr int kGroupThreads = kScaleGroup / kLanes;
  // Long rows leave no registers for it: then weights come from the cache, and residuals late.
  static constexpr bool kKeeps = kPacks <= 2;
  static constexpr int kNobody = 1 << 24;  // behind every row, and the beginning of a warp

  __device__ __forceinline__ void store_rows(NormOutput output, const NormTarget* targets,
                                             int count, int64_t row, int j, Pack v) const {
    if (targets[0].data[output] == nullptr) return;
    for (int d = 0; d < count; ++d) {
      store_plain(static_cast<Pack*>(targets[d].data[output]) + row * packs_ + index(j), v);
    }
  }

  __device__ __forceinline__ Pack weight_of(int j) const {
    return static_cast<const Pack*>(spec_.weight)[index(j)];
  }
  __device__ __forceinline__ Pack residual_of(int64_t row, int j) const {
    return static_cast<const Pack*>(spec_.residual)[row * packs_ + index(j)];
  }

  static __device__ __forceinline__ Pack sum_of(Pack a, Pack b) {
    typename V::Sum sum;
    V::first(sum, a);
    V::add(sum, b, RedOp::kSum);
    return V::finish(sum, RedOp::kSum, 2);
  }

  static __device__ __forceinline__ float sum_in_warp(float v) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      v = add(v, __shfl_xor_sync(kFullWarp, v, distance));
    }
    return v;
  }

  static __device__ __forceinline__ float sum_of_squares(Pack x) {
    typename V::Sum lanes;
    V::first(lanes, x);
    float sum = multiply(lanes.lane[0], lanes.lane[0]);
#pragma unroll
    for (int i = 1; i < kLanes; ++i) sum = add(sum, multiply(lanes.lane[i], lanes.lane[i]));
    return sum;
  }

  // 1 / sqrt(m), the same in all threads. The halves of the shared memory take turns, so that a
  // thread which is already at the next row does not write what others still read.
  __device__ __forceinline__ float factor_of(const Pack (&r)[kPacks]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int runs = (packs_ + 31) / 32;
    float* const sums = shared_ + (odd_ ? runs : 0);
    odd_ = !odd_;
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      const float sum = sum_in_warp(sum_of_squares(r[j]));
      const int run = index(j) / 32;
      if (lane == 0 && run < runs) sums[run] = sum;
    }
    __syncthreads();
    float total = 0;
    for (int run = lane; run < runs; run += 32) total = add(total, sums[run]);
    total = sum_in_warp(total);
    const float mean = divide(total, static_cast<float>(spec_.hidden));
    return divide(1.0F, __fsqrt_rn(add(mean, spec_.epsilon)));
  }

  __device__ __forceinline__ typename V::Sum normalised(Pack r, Pack weight, float factor) const {
    typename V::Sum y, w;
    V::first(y, r);
    V::first(w, weight);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const float by = spec_.one_plus_weight ? add(1.0F, w.lane[i]) : w.lane[i];
      y.lane[i] = multiply(multiply(y.lane[i], factor), by);
    }
    return y;
  }

  // The whole warp takes part; threads beyond the row with zeros. A group lies within a warp.
  __device__ __forceinline__ void write_codes(const typename V::Sum& y, int j, int64_t row,
                                              const NormTarget* targets, int count) const {
    float inverse = spec_.inverse_scale;
    if (spec_.form != NormCodes::kTensorScale) {
      float amax = 0;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) amax = fmaxf(amax, fabsf(y.lane[i]));
      float scale = scale_of(largest_among<kGroupThreads, false>(amax), 448.0F);
      if (spec_.form == NormCodes::kGroupPowersOfTwo) scale = power_of_two_above(scale);
      inverse = divide(1.0F, scale);
      if (mine(j) && threadIdx.x % kGroupThreads == 0) {
        const int64_t at = row * spec_.row_stride + index(j) / kGroupThreads * spec_.group_stride;
        for (int d = 0; d < count; ++d) {
          auto* const scales = static_cast<float*>(targets[d].data[kScales]);
          auto* const exponents = static_cast<uint8_t*>(targets[d].data[kScalesUe8m0]);
          if (scales != nullptr) scales[at] = scale;
          if (exponents != nullptr) exponents[at] = ue8m0_of(scale);
        }
      }
    }
    if (!mine(j)) return;
    float v[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] = multiply(y.lane[i], inverse);
    const uint2 codes = {E4m3::narrow_four(v[0], v[1], v[2], v[3]),
                         E4m3::narrow_four(v[4], v[5], v[6], v[7])};
    for (int d = 0; d < count; ++d) {
      static_cast<uint2*>(targets[d].data[kCodes])[row * packs_ + index(j)] = codes;
    }
  }

  const NormSpec& spec_;
  float* const shared_;
  const int packs_;
  const int threads_;
  const int first_;
  bool odd_ = false;
  Pack weight_[kKeeps ? kPacks : 1];
  Pack residual_[kKeeps ? kPacks : 1];
};

}  // namespace zbccl::cuda
