#include "perf/data.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>

namespace zbccl::tools {
namespace {

// A bijection of 64 bits in which every input bit reaches every output bit.
uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ULL;
  x ^= x >> 29;
  x *= 0xa0761d6478bd642fULL;
  x ^= x >> 32;
  return x;
}

// The stream of one rank; rank -1 is what all ranks have in common.
uint64_t stream_key(uint64_t seed, int rank) {
  return mix(mix(seed + 1) ^ (static_cast<uint64_t>(static_cast<int64_t>(rank)) * 2 + 3));
}

// Gives use(i, byte) the stream's bytes [first, first + count).
template <typename Use>
void each_byte(uint64_t key, size_t first, size_t count, Use&& use) {
  uint64_t word = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t index = first + i;
    if (i == 0 || index % 8 == 0) word = mix(key + index / 8) >> (8 * (index % 8));
    use(i, static_cast<uint32_t>(word & 0xff));
    word >>= 8;
  }
}

// A number in [0, bound) from a byte, bound <= 256.
int scaled(uint32_t byte, int bound) {
  return static_cast<int>(byte * static_cast<uint32_t>(bound) >> 8);
}

struct FloatFormat {
  int mantissa_bits;
  int bias;
  int bits;
};

// Exact for the integers that the format holds.
uint32_t encode_float(int value, const FloatFormat& format) {
  if (value == 0) return 0;
  const auto magnitude = static_cast<uint32_t>(std::abs(value));
  const int exponent = std::bit_width(magnitude) - 1;
  const uint32_t fraction = magnitude ^ (1U << exponent);
  const int shift = format.mantissa_bits - exponent;
  const uint32_t mantissa = shift >= 0 ? fraction << shift : fraction >> -shift;
  const uint32_t sign = value < 0 ? 1U << (format.bits - 1) : 0;
  return sign | static_cast<uint32_t>(exponent + format.bias) << format.mantissa_bits | mantissa;
}

struct TypeTraits {
  int limit;  // integers up to this one are exact, in sums too
  bool is_signed;
  bool is_float;
};

TypeTraits traits_of(zbcclDataType_t type) {
  switch (type) {
    case zbcclFloat16: return {2048, true, true};
    case zbcclBfloat16: return {256, true, true};
    case zbcclFloat8e4m3: return {16, true, true};
    case zbcclFloat8e5m2: return {8, true, true};
    case zbcclInt8: return {127, true, false};
    case zbcclUint8: return {255, false, false};
    case zbcclUint16:
    case zbcclUint32:
    case zbcclUint64: return {32767, false, false};
    case zbcclFloat32:
    case zbcclFloat64: return {32767, true, true};
    default: return {32767, true, false};
  }
}

template <typename T>
void convert(const int32_t* values, size_t count, void* out) {
  T* typed = static_cast<T*>(out);
  for (size_t i = 0; i < count; ++i) typed[i] = static_cast<T>(values[i]);
}

template <typename Bits>
void convert_float(const FloatFormat& format, const int32_t* values, size_t count, void* out) {
  Bits* typed = static_cast<Bits*>(out);
  for (size_t i = 0; i < count; ++i) typed[i] = static_cast<Bits>(encode_float(values[i], format));
}

constexpr FloatFormat kF16 = {10, 15, 16};
constexpr FloatFormat kBf16 = {7, 127, 16};
constexpr FloatFormat kE4m3 = {3, 7, 8};
constexpr FloatFormat kE5m2 = {2, 15, 8};

constexpr int kMaxMagnitude = 100;
constexpr int kMaxDoublings = 3;  // in a product: +-8 is exact in every type
constexpr int kMaxAverage = 4;
constexpr unsigned char kPoison = 0x5a;

uint64_t differing(const std::byte* a, const std::byte* b, size_t count, size_t element) {
  if (std::memcmp(a, b, count * element) == 0) return 0;
  uint64_t wrong = 0;
  for (size_t i = 0; i < count; ++i) {
    wrong += std::memcmp(a + i * element, b + i * element, element) != 0;
  }
  return wrong;
}

}  // namespace

ReductionData::ReductionData(zbcclDataType_t type, zbcclRedOp_t op, int ranks, uint64_t seed)
    : type_(type),
      op_(op),
      ranks_(ranks),
      seed_(seed),
      is_signed_(traits_of(type).is_signed),
      limit_(traits_of(type).limit) {}

// Sums stay within the limit: by small values, and where even ones are too many, by zeros in all
// but `limit_` ranks, others for every element. For min and max nothing adds up.
void ReductionData::sum_values(int rank, size_t first, size_t count, int32_t* out) const {
  const int addends = op_ == zbcclSum ? ranks_ : 1;
  const int magnitude = std::clamp(limit_ / addends, 1, kMaxMagnitude);
  const int low = is_signed_ ? -magnitude : 0;
  each_byte(stream_key(seed_, rank), first, count,
            [&](size_t i, uint32_t byte) { out[i] = low + scaled(byte, magnitude - low + 1); });
  if (addends <= limit_) return;
  each_byte(stream_key(seed_, -1), first, count, [&](size_t i, uint32_t byte) {
    if ((rank + static_cast<int>(byte)) % ranks_ >= limit_) out[i] = 0;
  });
}

// Ones, and a two in at most kMaxDoublings ranks; signs where the type has them.
void ReductionData::prod_values(int rank, size_t first, size_t count, int32_t* out) const {
  each_byte(stream_key(seed_, rank), first, count, [&](size_t i, uint32_t byte) {
    out[i] = (byte & 1) != 0 && is_signed_ ? -1 : 1;
    if ((byte & 2) != 0) out[i] *= 2;
  });
  if (ranks_ <= kMaxDoublings) return;
  each_byte(stream_key(seed_, -1), first, count, [&](size_t i, uint32_t byte) {
    if ((rank + static_cast<int>(byte)) % ranks_ >= kMaxDoublings) out[i] = out[i] < 0 ? -1 : 1;
  });
}

void ReductionData::averages(size_t first, size_t count, int32_t* out) const {
  // Sums of integers stay within the type; sums of floats are made in f32 and do so anyway.
  const bool is_float = traits_of(type_).is_float;
  const int top = is_float ? kMaxAverage : std::clamp(limit_ / ranks_, 0, kMaxAverage);
  each_byte(stream_key(seed_, -1), first, count,
            [&](size_t i, uint32_t byte) { out[i] = scaled(byte, top + 1); });
}

// Pairs of ranks lie equally far above and below the average; a last odd one gives the average
// itself.
void ReductionData::avg_values(int rank, size_t first, size_t count, int32_t* out) const {
  averages(first, count, out);
  const bool alone = rank % 2 == 0 && rank + 1 == ranks_;
  if (alone) return;
  // The pair's stream lies beyond those of single ranks.
  each_byte(stream_key(seed_, -2 - rank / 2), first, count, [&](size_t i, uint32_t byte) {
    const int distance = scaled(byte, out[i] + 1);
    out[i] += rank % 2 == 0 ? distance : -distance;
  });
}

void ReductionData::values(int rank, size_t first, size_t count, int32_t* out) const {
  switch (op_) {
    case zbcclProd: prod_values(rank, first, count, out); return;
    case zbcclAvg: avg_values(rank, first, count, out); return;
    default: sum_values(rank, first, count, out); return;
  }
}

void ReductionData::results(size_t first, size_t count, int32_t* out) const {
  if (op_ == zbcclAvg) {
    averages(first, count, out);
    return;
  }
  values(0, first, count, out);
  std::array<int32_t, kBlock> operand;
  for (int rank = 1; rank < ranks_; ++rank) {
    values(rank, first, count, operand.data());
    for (size_t i = 0; i < count; ++i) {
      switch (op_) {
        case zbcclProd: out[i] *= operand[i]; break;
        case zbcclMin: out[i] = std::min(out[i], operand[i]); break;
        case zbcclMax: out[i] = std::max(out[i], operand[i]); break;
        default: out[i] += operand[i]; break;
      }
    }
  }
}

void ReductionData::encode(const int32_t* values, size_t count, void* out) const {
  switch (type_) {
    case zbcclFloat32: convert<float>(values, count, out); return;
    case zbcclFloat64: convert<double>(values, count, out); return;
    case zbcclFloat16: convert_float<uint16_t>(kF16, values, count, out); return;
    case zbcclBfloat16: convert_float<uint16_t>(kBf16, values, count, out); return;
    case zbcclFloat8e4m3: convert_float<uint8_t>(kE4m3, values, count, out); return;
    case zbcclFloat8e5m2: convert_float<uint8_t>(kE5m2, values, count, out); return;
    case zbcclInt8:
    case zbcclUint8: convert<uint8_t>(values, count, out); return;
    case zbcclInt16:
    case zbcclUint16: convert<uint16_t>(values, count, out); return;
    case zbcclInt32:
    case zbcclUint32: convert<uint32_t>(values, count, out); return;
    default: convert<int64_t>(values, count, out); return;
  }
}

void ReductionData::fill(int rank, size_t first, size_t count, void* out) const {
  const size_t element = zbcclTypeSize(type_);
  std::array<int32_t, kBlock> block;
  for (size_t done = 0; done < count; done += kBlock) {
    const size_t size = std::min(kBlock, count - done);
    values(rank, first + done, size, block.data());
    encode(block.data(), size, static_cast<std::byte*>(out) + done * element);
  }
}

template <typename Produce>
uint64_t ReductionData::count_wrong(size_t count, const void* data, Produce&& produce) const {
  const size_t element = zbcclTypeSize(type_);
  const auto* bytes = static_cast<const std::byte*>(data);
  std::array<int32_t, kBlock> block;
  alignas(8) std::array<std::byte, kBlock * 8> expected;
  uint64_t wrong = 0;
  for (size_t done = 0; done < count; done += kBlock) {
    const size_t size = std::min(kBlock, count - done);
    produce(done, size, block.data());
    encode(block.data(), size, expected.data());
    wrong += differing(bytes + done * element, expected.data(), size, element);
  }
  return wrong;
}

uint64_t ReductionData::wrong_input(int rank, size_t first, size_t count, const void* data) const {
  return count_wrong(count, data, [&](size_t done, size_t size, int32_t* out) {
    values(rank, first + done, size, out);
  });
}

uint64_t ReductionData::wrong_result(size_t first, size_t count, const void* data) const {
  return count_wrong(count, data, [&](size_t done, size_t size, int32_t* out) {
    results(first + done, size, out);
  });
}

void fill_bits(uint64_t seed, int rank, size_t bytes, void* out) {
  const uint64_t key = stream_key(seed, rank);
  auto* target = static_cast<std::byte*>(out);
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    const uint64_t word = mix(key + i / sizeof word);
    std::memcpy(target + i, &word, std::min(sizeof word, bytes - i));
  }
}

uint64_t wrong_bits(uint64_t seed, int rank, size_t first, size_t count, size_t element,
                    const void* data) {
  constexpr size_t kBytes = 8192;  // a multiple of every element's size
  constexpr size_t kWord = sizeof(uint64_t);
  alignas(8) std::array<std::byte, kBytes + kWord> expected;
  const uint64_t key = stream_key(seed, rank);
  const auto* bytes = static_cast<const std::byte*>(data);
  const size_t total = count * element;
  uint64_t wrong = 0;
  for (size_t done = 0; done < total; done += kBytes) {
    const size_t size = std::min(kBytes, total - done);
    const size_t start = first * element + done;
    const size_t skipped = start % kWord;  // the stream is made of whole words
    for (size_t i = 0; i < skipped + size; i += kWord) {
      const uint64_t word = mix(key + (start - skipped + i) / kWord);
      std::memcpy(expected.data() + i, &word, kWord);
    }
    wrong += differing(bytes + done, expected.data() + skipped, size / element, element);
  }
  return wrong;
}

void poison(size_t bytes, void* out) { std::memset(out, kPoison, bytes); }

uint64_t wrong_poison(size_t bytes, const void* data) {
  const auto* begin = static_cast<const unsigned char*>(data);
  return bytes - static_cast<uint64_t>(std::count(begin, begin + bytes, kPoison));
}

}  // namespace zbccl::tools
