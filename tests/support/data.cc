#include "support/data.h"

#include <array>
#include <bit>
#include <cstring>

#include "support/floats.h"

namespace zbccl::test {
namespace {

// Layout of a float type as bits: sign, exponent, mantissa.
struct Layout {
  int exponent_bits;
  int mantissa_bits;
};

Layout layout_of(zbcclDataType_t type) {
  if (type == zbcclFloat32) return {8, 23};
  if (type == zbcclFloat64) return {11, 52};
  const FloatFormat format = format_of(type);
  return {format.exponent_bits, format.mantissa_bits};
}

// Exponents within a few binades of 1, so that sums round in many ways and products stay finite.
uint64_t random_float(uint64_t h, Layout layout) {
  const uint64_t bias = (uint64_t{1} << (layout.exponent_bits - 1)) - 1;
  const uint64_t spread = layout.exponent_bits >= 8 ? 8 : 4;
  const uint64_t exponent = bias - spread / 2 + (h >> 56) % spread;
  const uint64_t mantissa = h & ((uint64_t{1} << layout.mantissa_bits) - 1);
  const uint64_t sign = (h >> 55) & 1;
  return ((sign << layout.exponent_bits | exponent) << layout.mantissa_bits) | mantissa;
}

uint64_t special_float(uint64_t h, zbcclDataType_t type) {
  const Layout layout = layout_of(type);
  const uint64_t one = ((uint64_t{1} << (layout.exponent_bits - 1)) - 1) << layout.mantissa_bits;
  const uint64_t infinity = ((uint64_t{1} << layout.exponent_bits) - 1) << layout.mantissa_bits;
  const bool e4m3 = type == zbcclFloat8e4m3;
  const uint64_t largest = e4m3 ? 0x7e : infinity - 1;
  const uint64_t nan = e4m3 ? 0x7f : infinity | (uint64_t{1} << (layout.mantissa_bits - 1));
  const std::array<uint64_t, 8> values = {0,
                                          1,
                                          (uint64_t{1} << layout.mantissa_bits) - 1,
                                          uint64_t{1} << layout.mantissa_bits,
                                          one,
                                          largest,
                                          e4m3 ? largest : infinity,
                                          nan};
  const uint64_t pick = (h >> 8) % 24;  // NaN and infinity rare enough to leave other results
  const uint64_t sign = uint64_t{h & 1} << (layout.exponent_bits + layout.mantissa_bits);
  if (pick < 12) return sign | values[pick % 6];
  if (pick == 12) return sign | values[6];
  if (pick == 13) return values[7];
  return random_float(mix(h), layout);
}

template <typename T>
void fill_as(void* out, size_t count, zbcclDataType_t type, Fill how, uint64_t seed, size_t first) {
  auto* bytes = static_cast<std::byte*>(out);
  const bool floating = is_float_type(type);
  const Layout layout = floating ? layout_of(type) : Layout{};
  for (size_t i = 0; i < count; ++i) {
    uint64_t bits = mix(seed + (first + i) * 0xd1342543de82ef95ull);
    if (floating)
      bits = how == Fill::kRandom ? random_float(bits, layout) : special_float(bits, type);
    const T value = static_cast<T>(bits);
    std::memcpy(bytes + i * sizeof(T), &value, sizeof(T));
  }
}

}  // namespace

size_t element_size(zbcclDataType_t type) {
  switch (type) {
    case zbcclFloat8e4m3:
    case zbcclFloat8e5m2:
    case zbcclInt8:
    case zbcclUint8: return 1;
    case zbcclFloat16:
    case zbcclBfloat16:
    case zbcclInt16:
    case zbcclUint16: return 2;
    case zbcclFloat32:
    case zbcclInt32:
    case zbcclUint32: return 4;
    default: return 8;
  }
}

void fill(void* out, size_t count, zbcclDataType_t type, Fill how, uint64_t seed, size_t first) {
  switch (element_size(type)) {
    case 1: return fill_as<uint8_t>(out, count, type, how, seed, first);
    case 2: return fill_as<uint16_t>(out, count, type, how, seed, first);
    case 4: return fill_as<uint32_t>(out, count, type, how, seed, first);
    default: return fill_as<uint64_t>(out, count, type, how, seed, first);
  }
}

uint64_t hash_bytes(const void* data, size_t bytes) {
  const auto* p = static_cast<const std::byte*>(data);
  uint64_t hash = 0xcbf29ce484222325ull;
  for (; bytes > 0;) {
    uint64_t word = 0;
    const size_t n = bytes < sizeof word ? bytes : sizeof word;
    std::memcpy(&word, p, n);
    hash = std::rotl((hash ^ word) * 0x100000001b3ull, 29);
    p += n;
    bytes -= n;
  }
  return mix(hash);
}

Difference compare(const void* a, const void* b, size_t count, zbcclDataType_t type) {
  const size_t size = element_size(type);
  Difference difference;
  if (count == 0 || std::memcmp(a, b, count * size) == 0) return difference;
  const auto* left = static_cast<const std::byte*>(a);
  const auto* right = static_cast<const std::byte*>(b);
  for (size_t i = 0; i < count; ++i, left += size, right += size) {
    if (std::memcmp(left, right, size) == 0) continue;
    if (difference.count++ == 0) difference.first = i;
  }
  return difference;
}

}  // namespace zbccl::test
