// e4m3 and e5m2: as numbers_float.h.
#pragma once

#include "kernels/cuda/numbers_float.h"

namespace zbccl::cuda {

// Bytes 2h and 2h + 1 of a word.
ZBCCL_BOTH uint16_t half_of(uint32_t word, int h) {
  return static_cast<uint16_t>(word >> (16 * h));
}

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
  // Saturates, and makes a NaN 0x7F.
  static ZBCCL_BOTH uint16_t narrow_two(float low, float high) {
#if ZBCCL_HOPPER
    uint16_t codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    return codes;
#else
    return static_cast<uint16_t>(Small::narrow(low) | Small::narrow(high) << 8);
#endif
  }
  static ZBCCL_BOTH float widen(Bits code) {
    float low, high;
    widen_two(low, high, code);
    return low;
  }
  static ZBCCL_BOTH Bits narrow(float v) { return static_cast<Bits>(narrow_two(v, v)); }
  static ZBCCL_BOTH void unpack(Acc (&lane)[kLanes], Pack pack) {
    for (int i = 0; i < 8; ++i) {
      widen_two(lane[2 * i], lane[2 * i + 1], half_of(pack.w[i / 2], i % 2));
    }
  }
  static ZBCCL_BOTH Pack pack(const Acc (&lane)[kLanes]) {
    Pack pack;
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = narrow_two(lane[4 * i], lane[4 * i + 1]);
      pack.w[i] = low | uint32_t{narrow_two(lane[4 * i + 2], lane[4 * i + 3])} << 16;
    }
    return pack;
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
  static ZBCCL_BOTH Bits narrow(float v) {
#if ZBCCL_HOPPER
    // The instruction saturates, also Inf. What is not below the middle between the largest finite
    // and the next power of two would round to that, which is Inf.
    uint16_t codes;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(v), "f"(v));
    if (fabsf(v) >= 61440.0F) codes = static_cast<uint16_t>((codes & 0x80U) | 0x7CU);
    return static_cast<Bits>(codes);
#else
    return static_cast<Bits>(Small::narrow(v));
#endif
  }
  static ZBCCL_BOTH void unpack(Acc (&lane)[kLanes], Pack pack) {
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = pack.w[i];
      lane[4 * i] = F16::widen(static_cast<uint16_t>(word << 8));
      lane[4 * i + 1] = F16::widen(static_cast<uint16_t>(word & 0xFF00U));
      lane[4 * i + 2] = F16::widen(static_cast<uint16_t>((word >> 8) & 0xFF00U));
      lane[4 * i + 3] = F16::widen(static_cast<uint16_t>((word >> 16) & 0xFF00U));
    }
  }
  static ZBCCL_BOTH Pack pack(const Acc (&lane)[kLanes]) {
    Pack pack;
    for (int i = 0; i < 4; ++i) {
      pack.w[i] = 0;
      for (int j = 0; j < 4; ++j) pack.w[i] |= uint32_t{narrow(lane[4 * i + j])} << (8 * j);
    }
    return pack;
  }
};

}  // namespace zbccl::cuda
