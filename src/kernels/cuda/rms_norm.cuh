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

#include "kernels/cuda/quantize.cuh"

namespace zbccl::cuda {

using zbccl::NormCodes;

// hidden: a multiple of the elements of a pack, with group scales of 128. Addresses are aligned to
// 16 bytes.
struct NormSpec {
  const void* weight;
  int hidden;
  float epsilon;
  bool one_plus_weight;  // as Gemma keeps its weights
};

// One row. What is null is left out.
struct NormRow {
  const void* residual;
  void* residual_out;     // may be `residual`
  void* out;              // y, rounded to the type
  void* codes;            // y / scale in e4m3; `hidden` bytes
  float inverse_scale;    // kTensorScale: 1 / scale
  float* scales;          // of the groups: f32,
  uint8_t* scales_ue8m0;  // and of powers of two the exponents
  int64_t scale_stride;   // elements between the scales of neighbouring groups
};

// Dynamic or static shared memory that a block brings.
__host__ __device__ constexpr int norm_shared_floats(int hidden) {
  return 2 * ((hidden / 8 + 31) / 32);
}

// Thread t of T has packs t, t + T, ..., at most kPacks. T is a multiple of 32, T * kPacks packs
// are at least a row. All threads of a block take part in every call.
template <DataType kType, int kPacks, NormCodes kCodes>
class RowNorm {
  using V = Vec<kType>;
  static_assert(kType == DataType::kBf16 || kType == DataType::kF16);
  static constexpr int kLanes = V::kLanes;

 public:
  // `shared`: norm_shared_floats(hidden) floats.
  __device__ __forceinline__ RowNorm(const NormSpec& spec, float* shared)
      : spec_(spec), shared_(shared), packs_(spec.hidden / kLanes) {
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      if (mine(j)) weight_[j] = static_cast<const Pack*>(spec.weight)[index(j)];
    }
  }

  // Loads what a row needs beside x, before x has arrived.
  __device__ __forceinline__ void prefetch(const NormRow& row) {
    if (row.residual == nullptr) return;
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      if (mine(j)) residual_[j] = static_cast<const Pack*>(row.residual)[index(j)];
    }
  }

  // x: this thread's packs of the row that was prefetched; those beyond it are not looked at.
  __device__ __forceinline__ void finish(const Pack (&x)[kPacks], const NormRow& row) {
    Pack r[kPacks];
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      r[j] = Pack{};
      if (!mine(j)) continue;
      r[j] = row.residual != nullptr ? sum_of(x[j], residual_[j]) : x[j];
      if (row.residual_out != nullptr) static_cast<Pack*>(row.residual_out)[index(j)] = r[j];
    }
    const float factor = factor_of(r);
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      typename V::Sum y;
      if (mine(j)) {
        y = normalised(r[j], weight_[j], factor);
        if (row.out != nullptr) {
          static_cast<Pack*>(row.out)[index(j)] = V::finish(y, RedOp::kSum, 2);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kLanes; ++i) y.lane[i] = 0;
      }
      if constexpr (kCodes != NormCodes::kNone) write_codes(y, j, row);
    }
  }

 private:
  static constexpr int kGroupThreads = kScaleGroup / kLanes;

  __device__ __forceinline__ int index(int j) const {
    return static_cast<int>(threadIdx.x) + j * static_cast<int>(blockDim.x);
  }
  __device__ __forceinline__ bool mine(int j) const { return index(j) < packs_; }

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
  __device__ __forceinline__ void write_codes(const typename V::Sum& y, int j,
                                              const NormRow& row) const {
    float inverse = row.inverse_scale;
    if constexpr (kCodes != NormCodes::kTensorScale) {
      float amax = 0;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) amax = fmaxf(amax, fabsf(y.lane[i]));
      float scale = scale_of(largest_among<kGroupThreads, false>(amax), 448.0F);
      if constexpr (kCodes == NormCodes::kGroupPowersOfTwo) scale = power_of_two_above(scale);
      inverse = divide(1.0F, scale);
      if (mine(j) && threadIdx.x % kGroupThreads == 0) {
        const int64_t at = index(j) / kGroupThreads * row.scale_stride;
        if (row.scales != nullptr) row.scales[at] = scale;
        if constexpr (kCodes == NormCodes::kGroupPowersOfTwo) {
          if (row.scales_ue8m0 != nullptr) row.scales_ue8m0[at] = ue8m0_of(scale);
        }
      }
    }
    if (!mine(j) || row.codes == nullptr) return;
    float v[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] = multiply(y.lane[i], inverse);
    static_cast<uint2*>(row.codes)[index(j)] = {E4m3::narrow_four(v[0], v[1], v[2], v[3]),
                                                E4m3::narrow_four(v[4], v[5], v[6], v[7])};
  }

  const NormSpec& spec_;
  float* const shared_;
  const int packs_;
  bool odd_ = false;
  Pack weight_[kPacks];
  Pack residual_[kPacks];
};

}  // namespace zbccl::cuda
