// e4m3 and e5m2: as numbers_float.h.
#pragma once

#include "kernels/cuda/numbers_float.h"

namespace zbccl::cuda {

// The lower or the upper half of a word.
ZBCCL_BOTH uint16_t half_of(uint32_t word, int h) {
  return static_cast<uint16_t>(word >> (16 * h));
}

#if ZBCCL_HOPPER
// Four codes, saturated; a NaN becomes 0x7F. One statement makes the whole word, and nothing else
// sees its halves: where a half is also used by itself, ptxas 13.0 reads that use from a register
// that nobody has written.
template <bool kE4m3>
__device__ __forceinline__ uint32_t saturated_four(float a, float b, float c, float d) {
  uint32_t word;
  if constexpr (kE4m3) {
    asm("{.reg .b16 low, high;\n\t"
        "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n\t"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n\t"
        "mov.b32 %0, {low, high};}"
        : "=r"(word)
        : "f"(a), "f"(b), "f"(c), "f"(d));
  } else {
    asm("{.reg .b16 low, high;\n\t"
        "cvt.rn.satfinite.e5m2x2.f32 low, %2, %1;\n\t"
        "cvt.rn.satfinite.e5m2x2.f32 high, %4, %3;\n\t"
        "mov.b32 %0, {low, high};}"
        : "=r"(word)
        : "f"(a), "f"(b), "f"(c), "f"(d));
  }
  return word;
}
#endif

struct E4m3 {
  using Acc = float;
  using Bits = uint8_t;
  using Small = SmallFloat<3, 7, 0x7EU, 0x7FU, 7>;
  static constexpr int kLanes = 16;
  static constexpr uint32_t kNan = 0x7FU;
  static constexpr bool kNanBelowOnes = false;

  // Through f16, which holds every value of e4m3.
  static ZBCCL_BOTH void widen_two(float& low, float& high, uint16_t codes) {
#if ZBCCL_HOPPER
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
    low = F16::widen(static_cast<uint16_t>(halves));
    high = F16::widen(static_cast<uint16_t>(halves >> 16));
#else
    low = Small::widen(codes & 0xFFU);
    high = Small::widen(codes >> 8U);
#endif
  }
  static ZBCCL_BOTH float widen(Bits code) {
    float low, high;
    widen_two(low, high, code);
    return low;
  }
  static ZBCCL_BOTH Bits narrow(float v) { return static_cast<Bits>(narrow_four(v, v, v, v)); }
  static ZBCCL_BOTH void unpack(Acc (&lane)[kLanes], Pack pack) {
    for (int i = 0; i < 8; ++i) {
      widen_two(lane[2 * i], lane[2 * i + 1], half_of(pack.w[i / 2], i % 2));
    }
  }
  static ZBCCL_BOTH Pack pack(const Acc (&lane)[kLanes]) {
    Pack pack;
    for (int i = 0; i < 4; ++i) {
      pack.w[i] = narrow_four(lane[4 * i], lane[4 * i + 1], lane[4 * i + 2], lane[4 * i + 3]);
    }
    return pack;
  }
  static ZBCCL_BOTH uint32_t narrow_four(float a, float b, float c, float d) {
#if ZBCCL_HOPPER
    return saturated_four<true>(a, b, c, d);
#else
    return Small::narrow(a) | Small::narrow(b) << 8 | Small::narrow(c) << 16 |
           Small::narrow(d) << 24;
#endif
  }
};

struct E5m2 {
  using Acc = float;
  using Bits = uint8_t;
  using Small = SmallFloat<2, 15, 0x7CU, 0x7FU, 7>;
  static constexpr int kLanes = 16;
  static constexpr uint32_t kNan = 0x7FU;
  static constexpr bool kNanBelowOnes = true;

  // The upper half of f16.
  static ZBCCL_BOTH float widen(Bits code) {
    return F16::widen(static_cast<uint16_t>(uint32_t{code} << 8));
  }
  static ZBCCL_BOTH Bits narrow(float v) { return static_cast<Bits>(narrow_four(v, v, v, v)); }
  static ZBCCL_BOTH void unpack(Acc (&lane)[kLanes], Pack pack) {
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = pack.w[i];
#if ZBCCL_HOPPER
      const uint32_t low = __byte_perm(word, 0, 0x1404);  // bytes above zeros: two f16
      const uint32_t high = __byte_perm(word, 0, 0x3424);
#else
      const uint32_t low = (word & 0xFFU) << 8 | (word & 0xFF00U) << 16;
      const uint32_t high = (word & 0xFF0000U) >> 8 | (word & 0xFF000000U);
#endif
      lane[4 * i] = F16::widen(half_of(low, 0));
      lane[4 * i + 1] = F16::widen(half_of(low, 1));
      lane[4 * i + 2] = F16::widen(half_of(high, 0));
      lane[4 * i + 3] = F16::widen(half_of(high, 1));
    }
  }
  static ZBCCL_BOTH Pack pack(const Acc (&lane)[kLanes]) {
    Pack pack;
    for (int i = 0; i < 4; ++i) {
      pack.w[i] = narrow_four(lane[4 * i], lane[4 * i + 1], lane[4 * i + 2], lane[4 * i + 3]);
    }
    return pack;
  }
  static ZBCCL_BOTH uint32_t narrow_four(float a, float b, float c, float d) {
#if ZBCCL_HOPPER
    // The instruction makes a NaN 0x7F, but saturates, Inf too. So a code of the largest finite may
    // stand for what rounds to the next power of two: for Inf.
    uint32_t word = saturated_four<false>(a, b, c, d);
    if ((((word & 0x7F7F7F7FU) + 0x05050505U) & 0x80808080U) != 0) {
      word = with_infinity(word, a, 0);
      word = with_infinity(word, b, 8);
      word = with_infinity(word, c, 16);
      word = with_infinity(word, d, 24);
    }
    return word;
#else
    return Small::narrow(a) | Small::narrow(b) << 8 | Small::narrow(c) << 16 |
           Small::narrow(d) << 24;
#endif
  }

#if ZBCCL_HOPPER

 private:
  static __device__ __forceinline__ uint32_t with_infinity(uint32_t word, float v, int shift) {
    constexpr float kMiddle = 61440.0F;  // between the largest finite and the next power of two
    const uint32_t infinity = (word & ~(0x7FU << shift)) | 0x7CU << shift;
    return fabsf(v) >= kMiddle ? infinity : word;
  }
#endif
};

}  // namespace zbccl::cuda
