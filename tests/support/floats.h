// Small float formats by their definition: slow, plain, and independent of the library's own
// conversions.
#pragma once

#include <zbccl/zbccl.h>

#include <cstdint>

namespace zbccl::test {

struct FloatFormat {
  int exponent_bits;
  int mantissa_bits;
  bool has_infinity;  // false: E4M3, whose only special value is NaN (all ones)
};
// For f16, bf16, e4m3 and e5m2.
FloatFormat format_of(zbcclDataType_t type);
bool is_small_float(zbcclDataType_t type);
bool is_float_type(zbcclDataType_t type);

float decode(uint32_t bits, FloatFormat format);
// Rounds to nearest, ties to even. Overflow gives infinity, or the largest finite value where there
// is none; a NaN gives the format's canonical one.
uint32_t encode(float value, FloatFormat format);

}  // namespace zbccl::test
