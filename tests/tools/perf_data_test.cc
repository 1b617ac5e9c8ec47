#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <tuple>
#include <vector>

#include "perf/data.h"

namespace zbccl::tools {
namespace {

constexpr size_t kCount = 3000;  // several blocks, the last one partly filled
constexpr uint64_t kSeed = 17;

// The value of one element, read from the format's definition.
double decode(zbcclDataType_t type, const void* data) {
  const auto read = [data](auto value) {
    std::memcpy(&value, data, sizeof value);
    return value;
  };
  const auto read_float = [](uint32_t bits, int mantissa_bits, int bias, int size) {
    const int exponent =
        static_cast<int>(bits >> mantissa_bits & ((1U << (size - 1 - mantissa_bits)) - 1));
    const double fraction = (bits & ((1U << mantissa_bits) - 1)) / std::ldexp(1, mantissa_bits);
    const double value =
        exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
    return (bits >> (size - 1) & 1) != 0 ? -value : value;
  };
  switch (type) {
    case zbcclFloat32: return read(float());
    case zbcclFloat64: return read(double());
    case zbcclFloat16: return read_float(read(uint16_t()), 10, 15, 16);
    case zbcclBfloat16: return read_float(read(uint16_t()), 7, 127, 16);
    case zbcclFloat8e4m3: return read_float(read(uint8_t()), 3, 7, 8);
    case zbcclFloat8e5m2: return read_float(read(uint8_t()), 2, 15, 8);
    case zbcclInt8: return read(int8_t());
    case zbcclUint8: return read(uint8_t());
    case zbcclInt16: return read(int16_t());
    case zbcclUint16: return read(uint16_t());
    case zbcclInt32: return read(int32_t());
    case zbcclUint32: return read(uint32_t());
    case zbcclInt64: return static_cast<double>(read(int64_t()));
    case zbcclUint64: return static_cast<double>(read(uint64_t()));
    default: return NAN;
  }
}

double combine(zbcclRedOp_t op, double a, double b) {
  switch (op) {
    case zbcclProd: return a * b;
    case zbcclMin: return std::min(a, b);
    case zbcclMax: return std::max(a, b);
    default: return a + b;
  }
}

// The bits of an integer: by search where the format is narrow, so that decode() alone defines it.
void encode(zbcclDataType_t type, double value, std::byte* out) {
  const auto write = [out](auto typed) { std::memcpy(out, &typed, sizeof typed); };
  switch (type) {
    case zbcclFloat32: return write(static_cast<float>(value));
    case zbcclFloat64: return write(value);
    case zbcclInt32:
    case zbcclUint32: return write(static_cast<int32_t>(value));
    case zbcclInt64:
    case zbcclUint64: return write(static_cast<int64_t>(value));
    default: break;
  }
  static std::map<std::pair<int, double>, uint16_t> known;
  auto [it, is_new] = known.try_emplace({type, value}, uint16_t{0});
  if (is_new) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      it->second = static_cast<uint16_t>(bits);
      if (decode(type, &it->second) == value) break;
      ASSERT_NE(bits, 65535u) << value << " is no value of " << zbcclTypeName(type);
    }
  }
  std::memcpy(out, &it->second, zbcclTypeSize(type));
}

class PerfData : public testing::TestWithParam<std::tuple<int, int>> {
 protected:
  zbcclDataType_t type() const { return static_cast<zbcclDataType_t>(std::get<0>(GetParam())); }
  zbcclRedOp_t op() const { return static_cast<zbcclRedOp_t>(std::get<1>(GetParam())); }
};

// The reduction in exact arithmetic must be what wrong_result() expects, and must be a value of the
// type: there is then one right answer, whatever the order of summation.
TEST_P(PerfData, ExpectsTheExactReduction) {
  const size_t element = zbcclTypeSize(type());
  for (const int ranks : {1, 2, 3, 8, 64, 200}) {
    const ReductionData data(type(), op(), ranks, kSeed);
    std::vector<double> exact(kCount);
    std::vector<std::byte> input(kCount * element);
    for (int rank = 0; rank < ranks; ++rank) {
      data.fill(rank, 0, kCount, input.data());
      ASSERT_EQ(data.wrong_input(rank, 0, kCount, input.data()), 0u);
      for (size_t i = 0; i < kCount; ++i) {
        const double value = decode(type(), &input[i * element]);
        exact[i] = rank == 0 ? value : combine(op(), exact[i], value);
      }
    }
    std::vector<std::byte> result(kCount * element);
    for (size_t i = 0; i < kCount; ++i) {
      if (op() == zbcclAvg) exact[i] /= ranks;
      ASSERT_EQ(exact[i], std::trunc(exact[i]));
      ASSERT_NO_FATAL_FAILURE(encode(type(), exact[i], &result[i * element]));
    }
    EXPECT_EQ(data.wrong_result(0, kCount, result.data()), 0u)
        << zbcclTypeName(type()) << " " << zbcclOpName(op()) << " " << ranks;
    // From any element on, as reduce_scatter asks.
    EXPECT_EQ(data.wrong_result(1237, 1500, &result[1237 * element]), 0u);
    result[element * 1500] ^= std::byte{1};
    EXPECT_EQ(data.wrong_result(0, kCount, result.data()), 1u);
    poison(result.size(), result.data());
    EXPECT_GT(data.wrong_result(0, kCount, result.data()), kCount * 9 / 10);
  }
}

INSTANTIATE_TEST_SUITE_P(TypesAndOperators, PerfData,
                         testing::Combine(testing::Range(0, static_cast<int>(zbcclNumTypes)),
                                          testing::Range(0, static_cast<int>(zbcclNumOps))),
                         [](const auto& test) {
                           const auto type = static_cast<zbcclDataType_t>(std::get<0>(test.param));
                           const auto op = static_cast<zbcclRedOp_t>(std::get<1>(test.param));
                           return std::string(zbcclTypeName(type)) + "_" + zbcclOpName(op);
                         });

TEST(PerfBits, TellsWrongElements) {
  for (const size_t element : {1u, 2u, 4u, 8u}) {
    const size_t count = 5001;
    std::vector<std::byte> data(count * element);
    fill_bits(kSeed, 3, data.size(), data.data());
    EXPECT_EQ(wrong_bits(kSeed, 3, 0, count, element, data.data()), 0u);
    EXPECT_GT(wrong_bits(kSeed, 2, 0, count, element, data.data()), count * 9 / 10);
    EXPECT_GT(wrong_bits(kSeed + 1, 3, 0, count, element, data.data()), count * 9 / 10);
    // From any element on, as all_to_all asks.
    for (const size_t first : {1u, 7u, 1031u}) {
      const std::byte* const part = data.data() + first * element;
      EXPECT_EQ(wrong_bits(kSeed, 3, first, count - first, element, part), 0u) << first;
      EXPECT_GT(wrong_bits(kSeed, 3, first + 1, count - first, element, part),
                (count - first) * 9 / 10);
    }
    data[4999 * element] ^= std::byte{0x80};
    data.back() ^= std::byte{1};
    EXPECT_EQ(wrong_bits(kSeed, 3, 0, count, element, data.data()), 2u);
  }
}

TEST(PerfBits, TellsWhatWasWrittenOver) {
  std::vector<std::byte> data(333);
  poison(data.size(), data.data());
  EXPECT_EQ(wrong_poison(data.size(), data.data()), 0u);
  data[0] = std::byte{1};
  data[332] = std::byte{2};
  EXPECT_EQ(wrong_poison(data.size(), data.data()), 2u);
}

}  // namespace
}  // namespace zbccl::tools
