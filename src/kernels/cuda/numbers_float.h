// f32, f64, f16 and bf16: a pack as accumulators, and accumulators rounded to a pack. pack() rounds
// to nearest even and makes every NaN the canonical one of docs/numerics.md.
//
// NVIDIA's arithmetic and conversions to f32 and 16-bit floats give one NaN only, which is positive
// and all ones. As a signed integer it is above every other value of the format, so that a minimum
// with the canonical NaN replaces it and leaves all else as it is.
#pragma once

#include "kernels/cuda/numbers_base.h"

namespace zbccl::cuda {

struct F32 {
  using Acc = float;
  using Bits = uint32_t;
  static constexpr int kLanes = 4;
  static constexpr uint32_t kNan = 0x7FC00000U;
  static constexpr bool kNanBelowOnes = true;  // the code below ones is a NaN, too

  static ZBCCL_BOTH float widen(Bits code) { return float_of(code); }
  static ZBCCL_BOTH Bits narrow(float v) { return is_nan(v) ? kNan : bits_of(v); }
  static ZBCCL_BOTH void unpack(Acc (&lane)[kLanes], Pack pack) {
    for (int i = 0; i < kLanes; ++i) lane[i] = float_of(pack.w[i]);
  }
  // Of results of arithmetic.
  static ZBCCL_BOTH Pack pack(const Acc (&lane)[kLanes]) {
    Pack pack;
    for (int i = 0; i < kLanes; ++i) {
#if ZBCCL_HOPPER
      pack.w[i] = min_s32(bits_of(lane[i]), kNan);
#else
      pack.w[i] = narrow(lane[i]);
#endif
    }
    return pack;
  }
};

struct F64 {
  using Acc = double;
  using Bits = uint64_t;
  static constexpr int kLanes = 2;
  static constexpr uint64_t kNan = 0x7FF8000000000000U;

  static ZBCCL_BOTH double widen(Bits code) { return double_of(code); }
  static ZBCCL_BOTH Bits narrow(double v) { return is_nan(v) ? kNan : bits_of(v); }
  static ZBCCL_BOTH void unpack(Acc (&lane)[kLanes], Pack pack) {
    for (int i = 0; i < kLanes; ++i) {
      lane[i] = double_of(uint64_t{pack.w[2 * i + 1]} << 32 | pack.w[2 * i]);
    }
  }
  static ZBCCL_BOTH Pack pack(const Acc (&lane)[kLanes]) {
    Pack pack;
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t bits = narrow(lane[i]);
      pack.w[2 * i] = static_cast<uint32_t>(bits);
      pack.w[2 * i + 1] = static_cast<uint32_t>(bits >> 32);
    }
    return pack;
  }
};

template <class Format>
ZBCCL_BOTH Pack pack_halves(const float (&lane)[8]) {
  Pack pack;
  for (int i = 0; i < 4; ++i) pack.w[i] = Format::narrow_two(lane[2 * i], lane[2 * i + 1]);
  return pack;
}

struct Bf16 {
  using Acc = float;
  using Bits = uint16_t;
  static constexpr int kLanes = 8;
  static constexpr uint32_t kNan = 0x7FC0U;
  static constexpr bool kNanBelowOnes = true;

  static ZBCCL_BOTH float widen(Bits code) { return float_of(uint32_t{code} << 16); }
  static ZBCCL_BOTH Bits narrow(float v) {
#if ZBCCL_HOPPER
    return static_cast<Bits>(narrow_two(v, v));
#else
    return static_cast<Bits>(is_nan(v) ? kNan : round_off(bits_of(v), 16));
#endif
  }
  static ZBCCL_BOTH void unpack(Acc (&lane)[kLanes], Pack pack) {
    for (int i = 0; i < 4; ++i) {
      lane[2 * i] = float_of(pack.w[i] << 16);
      lane[2 * i + 1] = float_of(pack.w[i] & 0xFFFF0000U);
    }
  }
  static ZBCCL_BOTH uint32_t narrow_two(float low, float high) {
#if ZBCCL_HOPPER
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return min_s16x2(word, kNan << 16 | kNan);
#else
    return uint32_t{narrow(high)} << 16 | narrow(low);
#endif
  }
  static ZBCCL_BOTH Pack pack(const Acc (&lane)[kLanes]) { return pack_halves<Bf16>(lane); }
};

struct F16 {
  using Acc = float;
  using Bits = uint16_t;
  using Small = SmallFloat<10, 15, 0x7C00U, 0x7E00U, 15>;
  static constexpr int kLanes = 8;
  static constexpr uint32_t kNan = 0x7E00U;
  static constexpr bool kNanBelowOnes = true;

  static ZBCCL_BOTH float widen(Bits code) {
#if ZBCCL_HOPPER
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(code));
    return v;
#else
    return Small::widen(code);
#endif
  }
  static ZBCCL_BOTH Bits narrow(float v) {
#if ZBCCL_HOPPER
    return static_cast<Bits>(narrow_two(v, v));
#else
    return static_cast<Bits>(Small::narrow(v));
#endif
  }
  static ZBCCL_BOTH void unpack(Acc (&lane)[kLanes], Pack pack) {
    for (int i = 0; i < 4; ++i) {
      lane[2 * i] = widen(static_cast<Bits>(pack.w[i]));
      lane[2 * i + 1] = widen(static_cast<Bits>(pack.w[i] >> 16));
    }
  }
  static ZBCCL_BOTH uint32_t narrow_two(float low, float high) {
#if ZBCCL_HOPPER
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return min_s16x2(word, kNan << 16 | kNan);
#else
    return uint32_t{narrow(high)} << 16 | narrow(low);
#endif
  }
  static ZBCCL_BOTH Pack pack(const Acc (&lane)[kLanes]) { return pack_halves<F16>(lane); }
};

}  // namespace zbccl::cuda
