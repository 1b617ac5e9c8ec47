#include "operators.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace zbccl::nccl {
namespace {

// A float format of 8 or 16 bits.
struct Format {
  int exponent_bits;
  int mantissa_bits;
  bool infinities;  // else its largest exponent holds numbers too, and it saturates
};

constexpr Format kHalf = {5, 10, true};
constexpr Format kBfloat16 = {8, 7, true};
constexpr Format kE4m3 = {4, 3, false};
constexpr Format kE5m2 = {5, 2, true};

constexpr int bias_of(const Format& f) { return (1 << (f.exponent_bits - 1)) - 1; }
constexpr uint32_t magnitude_mask(const Format& f) {
  return (1U << (f.exponent_bits + f.mantissa_bits)) - 1;
}
constexpr uint32_t nan_of(const Format& f) {
  if (!f.infinities) return magnitude_mask(f);
  // The canonical one of docs/numerics.md: quiet, or all ones in 8 bits.
  const bool is_byte = f.exponent_bits + f.mantissa_bits == 7;
  const uint32_t infinity = ((1U << f.exponent_bits) - 1) << f.mantissa_bits;
  return is_byte ? magnitude_mask(f) : infinity | 1U << (f.mantissa_bits - 1);
}

float decode(uint32_t bits, const Format& f) {
  const bool negative = (bits >> (f.exponent_bits + f.mantissa_bits) & 1) != 0;
  const uint32_t magnitude = bits & magnitude_mask(f);
  const int exponent = static_cast<int>(magnitude >> f.mantissa_bits);
  const uint32_t mantissa = magnitude & ((1U << f.mantissa_bits) - 1);
  const int largest = (1 << f.exponent_bits) - 1;
  float value = 0;
  if (f.infinities && exponent == largest) {
    value = mantissa == 0 ? INFINITY : NAN;
  } else if (!f.infinities && magnitude == magnitude_mask(f)) {
    value = NAN;
  } else {
    const uint32_t whole = exponent == 0 ? mantissa : mantissa | 1U << f.mantissa_bits;
    value = std::ldexp(static_cast<float>(whole),
                       (exponent == 0 ? 1 : exponent) - bias_of(f) - f.mantissa_bits);
  }
  return negative ? -value : value;
}

// To nearest, ties to even.
uint32_t encode(float value, const Format& f) {
  const uint32_t sign = std::signbit(value) ? 1U << (f.exponent_bits + f.mantissa_bits) : 0;
  if (std::isnan(value)) return nan_of(f);
  const uint32_t infinity = ((1U << f.exponent_bits) - 1) << f.mantissa_bits;
  const uint32_t beyond = f.infinities ? infinity : magnitude_mask(f) - 1;
  const float size = std::fabs(value);
  if (std::isinf(size)) return sign | beyond;
  if (size == 0) return sign;
  const int exponent = std::max(std::ilogb(size), 1 - bias_of(f));
  // In units of the last place: rounding up into the next exponent carries by itself.
  const float scaled = std::ldexp(size, f.mantissa_bits - exponent);
  const auto whole = static_cast<uint32_t>(std::nearbyint(scaled));
  const uint64_t magnitude =
      (static_cast<uint64_t>(exponent + bias_of(f) - 1) << f.mantissa_bits) + whole;
  return sign | static_cast<uint32_t>(std::min<uint64_t>(magnitude, beyond));
}

template <typename T>
void multiply_native(const void* from, void* to, size_t count, const void* factor) {
  const auto* in = static_cast<const T*>(from);
  auto* out = static_cast<T*>(to);
  T by;
  std::memcpy(&by, factor, sizeof by);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<T>(in[i] * by);
}

template <typename Bits>
void multiply_narrow(const void* from, void* to, size_t count, const void* factor,
                     const Format& format) {
  const auto* in = static_cast<const Bits*>(from);
  auto* out = static_cast<Bits*>(to);
  Bits bits;
  std::memcpy(&bits, factor, sizeof bits);
  const float by = decode(bits, format);
  for (size_t i = 0; i < count; ++i) {
    out[i] = static_cast<Bits>(encode(decode(in[i], format) * by, format));
  }
}

}  // namespace

size_t element_size(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    default: return 8;
  }
}

void multiply(const void* from, void* to, size_t count, ncclDataType_t type, const void* factor) {
  switch (type) {
    // Modulo 2^bits: signed ones give the same bits as unsigned ones, whose overflow is defined.
    case ncclInt8:
    case ncclUint8: return multiply_native<uint8_t>(from, to, count, factor);
    case ncclInt32:
    case ncclUint32: return multiply_native<uint32_t>(from, to, count, factor);
    case ncclInt64:
    case ncclUint64: return multiply_native<uint64_t>(from, to, count, factor);
    case ncclFloat32: return multiply_native<float>(from, to, count, factor);
    case ncclFloat64: return multiply_native<double>(from, to, count, factor);
    case ncclFloat16: return multiply_narrow<uint16_t>(from, to, count, factor, kHalf);
    case ncclBfloat16: return multiply_narrow<uint16_t>(from, to, count, factor, kBfloat16);
    case ncclFloat8e4m3: return multiply_narrow<uint8_t>(from, to, count, factor, kE4m3);
    case ncclFloat8e5m2: return multiply_narrow<uint8_t>(from, to, count, factor, kE5m2);
    default: return;
  }
}

}  // namespace zbccl::nccl
