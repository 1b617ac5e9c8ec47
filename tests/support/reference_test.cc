#include "support/reference.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace zbccl::test {
namespace {

template <typename T, size_t N>
T reduce_one(const std::array<T, N>& values, zbcclDataType_t type, zbcclRedOp_t op) {
  std::array<const void*, N> inputs;
  for (size_t i = 0; i < N; ++i) inputs[i] = &values[i];
  T out{};
  reference_reduce(inputs, &out, 1, type, op);
  return out;
}

TEST(Reference, SumsInOrder) {
  const std::array<float, 3> values = {1e8f, 1.0f, -1e8f};
  EXPECT_EQ(0.0f, reduce_one(values, zbcclFloat32, zbcclSum));
  const std::array<float, 3> other = {1e8f, -1e8f, 1.0f};
  EXPECT_EQ(1.0f, reduce_one(other, zbcclFloat32, zbcclSum));
}

TEST(Reference, RoundsSmallFloatsOnce) {
  // 256 + 1 + 1 in bf16: rounding after each step would give 256.
  const std::array<uint16_t, 3> values = {0x4380, 0x3f80, 0x3f80};
  EXPECT_EQ(0x4381, reduce_one(values, zbcclBfloat16, zbcclSum));
}

TEST(Reference, IntegersWrap) {
  EXPECT_EQ(static_cast<int8_t>(-56),
            reduce_one(std::array<int8_t, 2>{100, 100}, zbcclInt8, zbcclSum));
  EXPECT_EQ(static_cast<uint16_t>(1),
            reduce_one(std::array<uint16_t, 2>{65535, 65535}, zbcclUint16, zbcclProd));
  EXPECT_EQ(0u, reduce_one(std::array<uint32_t, 2>{1u << 31, 1u << 31}, zbcclUint32, zbcclSum));
}

TEST(Reference, MinimumAndMaximum) {
  EXPECT_TRUE(std::signbit(reduce_one(std::array<float, 2>{0.0f, -0.0f}, zbcclFloat32, zbcclMin)));
  EXPECT_FALSE(std::signbit(reduce_one(std::array<float, 2>{-0.0f, 0.0f}, zbcclFloat32, zbcclMax)));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(reduce_one(std::array<float, 2>{1.0f, nan}, zbcclFloat32, zbcclMin)));
  EXPECT_EQ(-3, reduce_one(std::array<int32_t, 3>{5, -3, 7}, zbcclInt32, zbcclMin));
}

TEST(Reference, AverageDividesBeforeTheRounding) {
  EXPECT_EQ(2.0f, reduce_one(std::array<float, 3>{1, 2, 3}, zbcclFloat32, zbcclAvg));
  EXPECT_EQ(72, reduce_one(std::array<uint8_t, 2>{200, 200}, zbcclUint8, zbcclAvg));
  EXPECT_EQ(-3, reduce_one(std::array<int8_t, 2>{-3, -4}, zbcclInt8, zbcclAvg));
}

TEST(Reference, ThereIsOneNaNAndOneRankIsACopy) {
  const float nan = -std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(0x7fc00000u, std::bit_cast<uint32_t>(
                             reduce_one(std::array<float, 2>{nan, 1}, zbcclFloat32, zbcclSum)));
  EXPECT_EQ(0xffc00000u,
            std::bit_cast<uint32_t>(reduce_one(std::array<float, 1>{nan}, zbcclFloat32, zbcclAvg)));
  EXPECT_EQ(0x7fc0, reduce_one(std::array<uint16_t, 2>{0xffc1, 0}, zbcclBfloat16, zbcclMax));
  EXPECT_EQ(0x7f, reduce_one(std::array<uint8_t, 2>{0xfd, 0}, zbcclFloat8e5m2, zbcclMin));
}

TEST(Reference, OverflowAtTheEnd) {
  EXPECT_EQ(0x7e, reduce_one(std::array<uint8_t, 2>{0x7e, 0x7e}, zbcclFloat8e4m3, zbcclSum));
  EXPECT_EQ(0xfc, reduce_one(std::array<uint8_t, 2>{0xfb, 0xfb}, zbcclFloat8e5m2, zbcclSum));
  EXPECT_EQ(0x7c00, reduce_one(std::array<uint16_t, 2>{0x7bff, 0x7bff}, zbcclFloat16, zbcclSum));
  // FP16 inputs whose intermediate sum overflows FP16, but not FP32.
  EXPECT_EQ(0x7bff,
            reduce_one(std::array<uint16_t, 3>{0x7bff, 0x7bff, 0xfbff}, zbcclFloat16, zbcclSum));
}

}  // namespace
}  // namespace zbccl::test
