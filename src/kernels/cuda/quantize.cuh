// Groups of 128 neighbouring elements with one FP32 scale each, for reductions that send fewer
// bytes, and the scales that a fused norm shares with them. Registers only. Elementwise arithmetic
// is single IEEE operations in the order written here, so that a CPU gets the same bits.
//
//   amax    the largest magnitude of the group, at least 1e-10
//   scale   amax / 448 (e4m3) or amax / 127 (int8), perhaps raised to a power of two
//   code    v * (1 / scale), to nearest even
//   value   code * scale
//
// A NaN stays one in e4m3 and does not touch its neighbours. int8 has no code for it, so the scale
// becomes NaN, and with it the whole group. An infinite value makes its group NaN, too.
#pragma once

#include "kernels/cuda/numbers.h"

namespace zbccl::cuda {

inline constexpr float kLeastAmax = 1e-10F;
inline constexpr uint32_t kFullWarp = 0xFFFFFFFFU;

enum class Code { kE4m3, kInt8 };

__device__ __forceinline__ float scale_of(float amax, float largest_code) {
  return divide(maximum(amax, kLeastAmax), largest_code);
}
// The next power of two that is not smaller. A scale is an f32 normal number.
__device__ __forceinline__ float power_of_two_above(float scale) {
  return float_of((bits_of(scale) + 0x007FFFFFU) & 0x7F800000U);
}
// The code of a power of two in the OCP format UE8M0.
__device__ __forceinline__ uint8_t ue8m0_of(float power_of_two) {
  return static_cast<uint8_t>(bits_of(power_of_two) >> 23);
}

// The largest of kThreads neighbouring threads, a power of two. The whole warp takes part. A NaN
// is left out, or wins.
template <int kThreads, bool kNanWins>
__device__ __forceinline__ float largest_among(float v) {
#pragma unroll
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(kFullWarp, v, distance);
    v = kNanWins ? maximum(v, other) : fmaxf(v, other);
  }
  return v;
}

// A thread has 16 neighbouring elements, so eight threads have a group. Codes are one pack of each
// thread, never with a word of poison in it; neither is a scale.
template <Code kCode>
struct Quantizer {
  static constexpr int kLanes = 16;
  static constexpr int kThreads = kScaleGroup / kLanes;
  static constexpr float kLargest = kCode == Code::kE4m3 ? 448.0F : 127.0F;
  struct Block {
    Pack codes;
    float scale;  // the same in the threads of a group
  };

  // The whole warp takes part.
  static __device__ __forceinline__ Block quantize(const float (&v)[kLanes]) {
    float amax = 0;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      amax = kNanWins ? maximum(amax, fabsf(v[i])) : fmaxf(amax, fabsf(v[i]));
    }
    Block block;
    amax = largest_among<kThreads, kNanWins>(amax);
    if (kCode == Code::kInt8) amax = add(amax, add(amax, -amax));  // NaN unless finite
    block.scale = scale_of(amax, kLargest);
    const float inverse = divide(1.0F, block.scale);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      block.codes.w[i] =
          encode_four(multiply(v[4 * i], inverse), multiply(v[4 * i + 1], inverse),
                      multiply(v[4 * i + 2], inverse), multiply(v[4 * i + 3], inverse));
    }
    return block;
  }

  static __device__ __forceinline__ void dequantize(float (&v)[kLanes], Pack codes, float scale) {
    decode(v, codes);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] = multiply(v[i], scale);
  }

 private:
  static constexpr bool kNanWins = kCode == Code::kInt8;
  // To it any value of int8 is added exactly as to 2^23: what is below the point is rounded off,
  // and the lower byte is the integer.
  static constexpr float kToInteger = 12582912.0F;  // 1.5 * 2^23
  // -128 is no code; so this makes a byte of ones none either.
  static constexpr uint32_t kFlip = 0x7F7F7F7FU;

  static __device__ __forceinline__ uint32_t encode_four(float a, float b, float c, float d) {
    if constexpr (kCode == Code::kE4m3) {
      return E4m3::narrow_four(a, b, c, d);
    } else {
      const uint32_t low = __byte_perm(integer(a), integer(b), 0x0040);
      const uint32_t high = __byte_perm(integer(c), integer(d), 0x0040);
      return __byte_perm(low, high, 0x5410) ^ kFlip;
    }
  }
  static __device__ __forceinline__ uint32_t integer(float v) {
    return bits_of(add(v, kToInteger));
  }

  static __device__ __forceinline__ void decode(float (&v)[kLanes], Pack codes) {
    if constexpr (kCode == Code::kE4m3) {
      E4m3::unpack(v, codes);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Each byte is now the code + 128, and behind 2^23 exactly that much more.
        const uint32_t word = codes.w[i] ^ kFlip ^ 0x80808080U;
        constexpr uint32_t kAbove = 0x4B000000U;  // 2^23
        constexpr float kOffset = -8388736.0F;    // -(2^23 + 128)
        v[4 * i] = add(float_of(__byte_perm(word, kAbove, 0x7650)), kOffset);
        v[4 * i + 1] = add(float_of(__byte_perm(word, kAbove, 0x7651)), kOffset);
        v[4 * i + 2] = add(float_of(__byte_perm(word, kAbove, 0x7652)), kOffset);
        v[4 * i + 3] = add(float_of(__byte_perm(word, kAbove, 0x7653)), kOffset);
      }
    }
  }
};

// The 16 elements of a thread as packs of an f32, f16 or bf16 tensor.
template <DataType kType>
struct Sixteen {
  using V = Vec<kType>;
  static constexpr int kPacks = 16 / V::kLanes;
  struct Packs {
    Pack pack[kPacks];
  };

  static __device__ __forceinline__ void widen(float (&v)[16], const Packs& packs) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      typename V::Sum lanes;
      V::first(lanes, packs.pack[p]);
#pragma unroll
      for (int i = 0; i < V::kLanes; ++i) v[p * V::kLanes + i] = lanes.lane[i];
    }
  }
  // Rounded once.
  static __device__ __forceinline__ Packs narrow(const float (&v)[16]) {
    Packs packs;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      typename V::Sum lanes;
#pragma unroll
      for (int i = 0; i < V::kLanes; ++i) lanes.lane[i] = v[p * V::kLanes + i];
      packs.pack[p] = V::finish(lanes, RedOp::kSum, 2);
    }
    return packs;
  }
};

}  // namespace zbccl::cuda
