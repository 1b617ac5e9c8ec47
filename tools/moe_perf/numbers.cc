#include "moe_perf/numbers.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

namespace zbccl::tools {
namespace {

struct Format {
  int mantissa_bits;
  int bias;
  int bits;
  uint32_t largest;  // what more rounds to: infinity, or the largest finite number
};
constexpr Format kF16 = {10, 15, 16, 0x7C00};
constexpr Format kBf16 = {7, 127, 16, 0x7F80};
constexpr Format kE4m3 = {3, 7, 8, 0x7E};

// The magnitude is counted in steps of its binade, to the nearest even one; a carry into the next
// binade adds up as it should.
uint32_t encode(const Format& format, float value) {
  const uint32_t sign = std::signbit(value) ? 1U << (format.bits - 1) : 0;
  const float magnitude = std::fabs(value);
  if (magnitude == 0) return sign;
  const int exponent = std::max(std::ilogb(magnitude), 1 - format.bias);
  const auto steps = static_cast<uint32_t>(
      std::nearbyint(std::ldexp(static_cast<double>(magnitude), format.mantissa_bits - exponent)));
  const auto binades = static_cast<uint32_t>(exponent + format.bias - 1);
  return sign | std::min((binades << format.mantissa_bits) + steps, format.largest);
}

float decode(const Format& format, uint32_t bits) {
  const uint32_t fraction = bits & ((1U << format.mantissa_bits) - 1);
  const int binade = static_cast<int>(bits >> format.mantissa_bits) &
                     ((1 << (format.bits - 1 - format.mantissa_bits)) - 1);
  const uint32_t hidden = binade > 0 ? 1U << format.mantissa_bits : 0;
  const int exponent = std::max(binade, 1) - format.bias - format.mantissa_bits;
  const float magnitude = std::ldexp(static_cast<float>(fraction + hidden), exponent);
  return bits >> (format.bits - 1) != 0 ? -magnitude : magnitude;
}

float largest_of(std::span<const float> values, float least) {
  float most = least;
  for (const float value : values) most = std::max(most, std::fabs(value));
  return most;
}

float power_of_two_from(float scale) {
  int exponent = 0;
  return std::frexp(scale, &exponent) == 0.5F ? scale : std::ldexp(1.0F, exponent);
}

void quantize_int8(std::span<const float> row, uint8_t* codes, uint32_t* scales) {
  const float scale = largest_of(row, 1e-10F) / 127.0F;
  const float inverse = 1.0F / scale;
  for (size_t i = 0; i < row.size(); ++i) {
    codes[i] = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(row[i] * inverse)));
  }
  scales[0] = std::bit_cast<uint32_t>(scale);
}

}  // namespace

void widen(zbcclDataType_t type, const void* values, std::span<float> out) {
  if (type == zbcclFloat32) {
    std::copy_n(static_cast<const float*>(values), out.size(), out.begin());
    return;
  }
  const Format& format = type == zbcclFloat16 ? kF16 : kBf16;
  const auto* bits = static_cast<const uint16_t*>(values);
  for (size_t i = 0; i < out.size(); ++i) out[i] = decode(format, bits[i]);
}

void narrow(zbcclDataType_t type, std::span<const float> values, void* out) {
  if (type == zbcclFloat32) {
    std::copy(values.begin(), values.end(), static_cast<float*>(out));
    return;
  }
  const Format& format = type == zbcclFloat16 ? kF16 : kBf16;
  auto* bits = static_cast<uint16_t*>(out);
  for (size_t i = 0; i < values.size(); ++i) {
    bits[i] = static_cast<uint16_t>(encode(format, values[i]));
  }
}

void quantize(zbcclMoeQuant_t quant, std::span<const float> row, uint8_t* codes, uint32_t* scales) {
  if (quant == zbcclMoeQuantInt8) {
    quantize_int8(row, codes, scales);
    return;
  }
  const bool packed = quant == zbcclMoeQuantFp8Ue8m0;
  constexpr size_t kGroup = ZBCCL_MOE_SCALE_GROUP;
  for (size_t begin = 0, g = 0; begin < row.size(); begin += kGroup, ++g) {
    const auto group = row.subspan(begin, std::min(kGroup, row.size() - begin));
    float scale = largest_of(group, 1e-4F) / 448.0F;
    if (quant != zbcclMoeQuantFp8) scale = power_of_two_from(scale);
    const float inverse = 1.0F / scale;
    for (size_t i = 0; i < group.size(); ++i) {
      codes[begin + i] = static_cast<uint8_t>(encode(kE4m3, group[i] * inverse));
    }
    const auto bits = std::bit_cast<uint32_t>(scale);
    if (!packed) {
      scales[g] = bits;
    } else {
      if (g % 4 == 0) scales[g / 4] = 0;
      scales[g / 4] |= bits >> 23 << (8 * (g % 4));
    }
  }
}

}  // namespace zbccl::tools
