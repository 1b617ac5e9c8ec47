#include "support/floats.h"

#include <cmath>
#include <limits>
#include <stdexcept>

namespace zbccl::test {

bool is_small_float(zbcclDataType_t type) {
  return type == zbcclFloat16 || type == zbcclBfloat16 || type == zbcclFloat8e4m3 ||
         type == zbcclFloat8e5m2;
}

bool is_float_type(zbcclDataType_t type) {
  return type == zbcclFloat32 || type == zbcclFloat64 || is_small_float(type);
}

FloatFormat format_of(zbcclDataType_t type) {
  switch (type) {
    case zbcclFloat16: return {5, 10, true};
    case zbcclBfloat16: return {8, 7, true};
    case zbcclFloat8e4m3: return {4, 3, false};
    case zbcclFloat8e5m2: return {5, 2, true};
    default: throw std::invalid_argument("not a small float type");
  }
}

float decode(uint32_t bits, FloatFormat format) {
  const uint32_t max_exponent = (1u << format.exponent_bits) - 1;
  const uint32_t max_mantissa = (1u << format.mantissa_bits) - 1;
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const uint32_t mantissa = bits & max_mantissa;
  const uint32_t exponent = (bits >> format.mantissa_bits) & max_exponent;
  const bool negative = ((bits >> (format.exponent_bits + format.mantissa_bits)) & 1) != 0;
  float value;
  if (exponent == max_exponent && (format.has_infinity || mantissa == max_mantissa)) {
    value = format.has_infinity && mantissa == 0 ? std::numeric_limits<float>::infinity()
                                                 : std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), 1 - bias - format.mantissa_bits);
  } else {
    value = std::ldexp(static_cast<float>(mantissa + max_mantissa + 1),
                       static_cast<int>(exponent) - bias - format.mantissa_bits);
  }
  return negative ? -value : value;
}

uint32_t encode(float value, FloatFormat format) {
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const uint32_t max_exponent = (1u << format.exponent_bits) - 1;
  const uint32_t max_mantissa = (1u << format.mantissa_bits) - 1;
  const uint32_t sign =
      std::signbit(value) ? 1u << (format.exponent_bits + format.mantissa_bits) : 0;
  const uint32_t infinity = max_exponent << format.mantissa_bits;
  const uint32_t nan = format.has_infinity && format.exponent_bits + format.mantissa_bits != 7
                           ? infinity | (1u << (format.mantissa_bits - 1))
                           : infinity | max_mantissa;
  if (std::isnan(value)) return nan;
  const uint32_t largest = format.has_infinity ? infinity - 1 : nan - 1;
  const uint32_t overflow = format.has_infinity ? infinity : largest;
  const double magnitude = std::fabs(static_cast<double>(value));
  if (std::isinf(magnitude)) return sign | overflow;
  if (magnitude == 0) return sign;
  // The spacing of representable values around `magnitude`; below the smallest normal it stays.
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  int step = exponent - 1 < 1 - bias ? 1 - bias : exponent - 1;
  step -= format.mantissa_bits;
  // Exact in double; nearbyint rounds ties to even in the default mode.
  const auto units = static_cast<uint64_t>(std::nearbyint(std::ldexp(magnitude, -step)));
  // `units` counts from zero in steps of this binade; adding the exponent field carries a round-up
  // into the next binade by itself.
  const int field = step + format.mantissa_bits + bias;
  const uint64_t bits =
      units <= max_mantissa
          ? units
          : (static_cast<uint64_t>(field) << format.mantissa_bits) + (units - max_mantissa - 1);
  return sign | (bits > largest ? overflow : static_cast<uint32_t>(bits));
}

}  // namespace zbccl::test
