// What the number formats stand on: vectors of 16 bytes, bits, and single IEEE operations, never
// contracted. For device code; compiled for the host too, where the same sources are tested against
// the host kernels. Device code is compiled without -ftz=true, which -use_fast_math contains:
// denormals are kept.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/types.h"

#if defined(__CUDACC__)
#define ZBCCL_BOTH __host__ __device__ __forceinline__
#else
#define ZBCCL_BOTH inline
#endif

// The instructions of Hopper and later; without it the formats are rounded by integer arithmetic.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define ZBCCL_HOPPER 1
#else
#define ZBCCL_HOPPER 0
#endif

namespace zbccl::cuda {

struct alignas(16) Pack {
  uint32_t w[4];
};

inline constexpr uint32_t kPoisonWord = 0xFFFFFFFFU;

// --- bits ---

ZBCCL_BOTH uint32_t bits_of(float v) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(v);
#else
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
#endif
}
ZBCCL_BOTH float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
#endif
}
ZBCCL_BOTH uint64_t bits_of(double v) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint64_t>(__double_as_longlong(v));
#else
  uint64_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
#endif
}
ZBCCL_BOTH double double_of(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  double v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
#endif
}

template <typename F>
ZBCCL_BOTH bool is_nan(F v) {
  return v != v;  // NOLINT(misc-redundant-expression)
}

// --- one IEEE operation, to nearest even ---

ZBCCL_BOTH float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
ZBCCL_BOTH double add(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}
ZBCCL_BOTH float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
ZBCCL_BOTH double multiply(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}
ZBCCL_BOTH float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
ZBCCL_BOTH double divide(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __ddiv_rn(a, b);
#else
  return a / b;
#endif
}

// --- minimum and maximum: a NaN wins, -0 < +0 ---

// Where the operands are equal they differ at most in the sign of zero.
ZBCCL_BOTH double minimum(double a, double b) {
  if (a == b) return double_of(bits_of(a) | bits_of(b));
  return a < b || is_nan(a) ? a : b;
}
ZBCCL_BOTH double maximum(double a, double b) {
  if (a == b) return double_of(bits_of(a) & bits_of(b));
  return b < a || is_nan(a) ? a : b;
}
ZBCCL_BOTH float minimum(float a, float b) {
#if ZBCCL_HOPPER
  float v;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
  return v;
#else
  if (a == b) return float_of(bits_of(a) | bits_of(b));
  return a < b || is_nan(a) ? a : b;
#endif
}
ZBCCL_BOTH float maximum(float a, float b) {
#if ZBCCL_HOPPER
  float v;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
  return v;
#else
  if (a == b) return float_of(bits_of(a) & bits_of(b));
  return b < a || is_nan(a) ? a : b;
#endif
}

// --- integers in vector registers ---

#if ZBCCL_HOPPER
__device__ __forceinline__ uint32_t min_s16x2(uint32_t a, uint32_t b) {
  uint32_t v;
  asm("min.s16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
__device__ __forceinline__ uint32_t min_s32(uint32_t a, uint32_t b) {
  uint32_t v;
  asm("min.s32 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
#endif

// Written out, because the compiler would make two instructions of it where b is a constant.
ZBCCL_BOTH uint32_t min_u32(uint32_t a, uint32_t b) {
#if ZBCCL_HOPPER
  uint32_t v;
  asm("min.u32 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
#else
  return a < b ? a : b;
#endif
}

// v / n for n >= 1; of a power of two the inverse multiplies, which gives the same bits.
ZBCCL_BOTH float divide_by_count(float v, int n) {
  const auto divisor = static_cast<float>(n);
  if ((n & (n - 1)) != 0) return divide(v, divisor);
  return multiply(v, float_of((uint32_t{254} << 23) - bits_of(divisor)));
}
ZBCCL_BOTH double divide_by_count(double v, int n) {
  const auto divisor = static_cast<double>(n);
  if ((n & (n - 1)) != 0) return divide(v, divisor);
  return multiply(v, double_of((uint64_t{2046} << 52) - bits_of(divisor)));
}

// --- small floats by integer arithmetic ---

// x / 2^drop to nearest even, 1 <= drop <= 31.
ZBCCL_BOTH constexpr uint32_t round_off(uint32_t x, uint32_t drop) {
  return (x + ((1U << (drop - 1)) - 1) + ((x >> drop) & 1)) >> drop;
}

// A small IEEE-like float: kTop is the code of Inf, or of the largest finite where there is none.
template <int kMantissa, int kBias, uint32_t kTop, uint32_t kNan, int kSignBit>
struct SmallFloat {
  static constexpr uint32_t kMagnitude = (1U << kSignBit) - 1;
  static constexpr int kShift = 23 - kMantissa;
  static constexpr bool kHasInf = (kTop & ((1U << kMantissa) - 1)) == 0;

  static ZBCCL_BOTH float widen(uint32_t code) {
    const uint32_t magnitude = code & kMagnitude;
    const uint32_t sign = (code >> kSignBit) << 31;
    uint32_t bits;
    if (magnitude > kTop) {
      bits = 0x7FC00000U;
    } else if (kHasInf && magnitude == kTop) {
      bits = 0x7F800000U;
    } else if ((magnitude >> kMantissa) == 0) {
      constexpr uint32_t kUnit = static_cast<uint32_t>(127 + 1 - kBias - kMantissa) << 23;
      bits = bits_of(multiply(static_cast<float>(magnitude), float_of(kUnit)));
    } else {
      bits = (magnitude << kShift) + (static_cast<uint32_t>(127 - kBias) << 23);
    }
    return float_of(bits | sign);
  }

  // Rounds once, to nearest even.
  static ZBCCL_BOTH uint32_t narrow(float v) {
    constexpr uint32_t kSmallestNormal = 128 - kBias;  // its exponent in f32
    const uint32_t bits = bits_of(v);
    const uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) return kNan;
    const uint32_t exponent = magnitude >> 23;
    uint32_t code;
    if (exponent >= kSmallestNormal) {
      code = round_off(magnitude, kShift) - (static_cast<uint32_t>(127 - kBias) << kMantissa);
    } else {
      // A multiple of the smallest denormal. f32 denormals lie far below half of it.
      const uint32_t drop = kShift + kSmallestNormal - exponent;
      code = drop > 25 ? 0 : round_off((magnitude & 0x7FFFFFU) | 0x800000U, drop);
    }
    if (code > kTop) code = kTop;
    return code | (bits >> 31) << kSignBit;
  }
};

}  // namespace zbccl::cuda
