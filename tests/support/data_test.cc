#include "support/data.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/floats.h"
#include "support/guarded.h"

namespace zbccl::test {
namespace {

TEST(Data, AnElementDependsOnSeedAndIndexAlone) {
  std::vector<float> whole(100);
  std::vector<float> part(40);
  fill(whole.data(), whole.size(), zbcclFloat32, Fill::kRandom, 7);
  fill(part.data(), part.size(), zbcclFloat32, Fill::kRandom, 7, 30);
  EXPECT_EQ(0, std::memcmp(whole.data() + 30, part.data(), part.size() * sizeof(float)));
  fill(part.data(), part.size(), zbcclFloat32, Fill::kRandom, 8, 30);
  EXPECT_NE(0, std::memcmp(whole.data() + 30, part.data(), part.size() * sizeof(float)));
}

TEST(Data, RandomFloatsAreFiniteAndTheirSumsRound) {
  std::vector<float> a(1000);
  std::vector<float> b(1000);
  fill(a.data(), a.size(), zbcclFloat32, Fill::kRandom, 1);
  fill(b.data(), b.size(), zbcclFloat32, Fill::kRandom, 2);
  int rounded = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(std::isfinite(a[i]));
    const double exact = static_cast<double>(a[i]) + static_cast<double>(b[i]);
    rounded += exact != static_cast<double>(a[i] + b[i]) ? 1 : 0;
  }
  EXPECT_GT(rounded, 300);
}

TEST(Data, SpecialValuesOccur) {
  std::vector<float> values(4000);
  fill(values.data(), values.size(), zbcclFloat32, Fill::kSpecial, 3);
  int nan = 0;
  int infinite = 0;
  int negative_zero = 0;
  int denormal = 0;
  for (float v : values) {
    nan += std::isnan(v) ? 1 : 0;
    infinite += std::isinf(v) ? 1 : 0;
    negative_zero += v == 0 && std::signbit(v) ? 1 : 0;
    denormal += std::fpclassify(v) == FP_SUBNORMAL ? 1 : 0;
  }
  EXPECT_GT(nan, 0);
  EXPECT_GT(infinite, 0);
  EXPECT_GT(negative_zero, 0);
  EXPECT_GT(denormal, 0);
}

TEST(Data, CompareCountsDifferences) {
  std::vector<float> a = {1, 2, std::numeric_limits<float>::quiet_NaN(), 0.0f};
  std::vector<float> b = {1, 3, -std::numeric_limits<float>::quiet_NaN(), -0.0f};
  const Difference strict = compare(a.data(), b.data(), a.size(), zbcclFloat32);
  EXPECT_EQ(3u, strict.count);
  EXPECT_EQ(1u, strict.first);
  EXPECT_EQ(0u, compare(a.data(), a.data(), a.size(), zbcclFloat32).count);
}

class SmallFloats : public testing::TestWithParam<zbcclDataType_t> {};
INSTANTIATE_TEST_SUITE_P(Types, SmallFloats,
                         testing::Values(zbcclFloat16, zbcclBfloat16, zbcclFloat8e4m3,
                                         zbcclFloat8e5m2));

TEST_P(SmallFloats, EveryValueSurvivesTheRoundTrip) {
  const FloatFormat format = format_of(GetParam());
  const uint32_t count = 1u << (1 + format.exponent_bits + format.mantissa_bits);
  for (uint32_t bits = 0; bits < count; ++bits) {
    const float value = decode(bits, format);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(decode(encode(value, format), format)));
    } else {
      ASSERT_EQ(bits, encode(value, format)) << value;
    }
  }
}

// Between two neighbours: below the middle down, above it up, the middle itself to the even one.
TEST_P(SmallFloats, RoundsToNearestEven) {
  const FloatFormat format = format_of(GetParam());
  const uint32_t end = ((1u << format.exponent_bits) - 1) << format.mantissa_bits;
  for (uint32_t bits = 0; bits + 1 < end; ++bits) {
    const double low = decode(bits, format);
    const double high = decode(bits + 1, format);
    const auto middle = static_cast<float>((low + high) / 2);
    if (static_cast<double>(middle) != (low + high) / 2) continue;  // below FP32's own spacing
    ASSERT_EQ(bits % 2 == 0 ? bits : bits + 1, encode(middle, format)) << low;
    ASSERT_EQ(bits + 1, encode(std::nextafter(middle, INFINITY), format)) << low;
    ASSERT_EQ(bits, encode(std::nextafter(middle, 0.0f), format)) << low;
  }
}

TEST(Guarded, NoticesWritesOutside) {
  Guarded block = Guarded::plain(10, 3);
  EXPECT_TRUE(block.poisoned());
  EXPECT_EQ("", block.damage());
  block.data()[9] = std::byte{0};
  EXPECT_FALSE(block.poisoned());
  EXPECT_EQ("", block.damage());
  block.data()[10] = std::byte{0};
  EXPECT_NE("", block.damage());
  Guarded before = Guarded::plain(10);
  before.data()[-1] = std::byte{0};
  EXPECT_NE("", before.damage());
}

}  // namespace
}  // namespace zbccl::test
