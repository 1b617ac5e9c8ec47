// What `zbccl moe --check` compares with: conversions, placements and the memory of others.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>

#include "moe_perf/batch.h"
#include "moe_perf/memory.h"
#include "moe_perf/numbers.h"
#include "moe_perf/placement.h"

namespace zbccl::tools {
namespace {

MoeShape small_shape(zbcclMoeLayout_t layout) {
  MoeShape shape;
  shape.ranks = 3;
  shape.tokens = 20;
  shape.hidden = 136;
  shape.experts = 7;
  shape.topk = 3;
  shape.layout = layout;
  shape.alignment = layout == zbcclMoeExpertMajor ? 8 : 1;
  return shape;
}

TEST(MoeNumbers, EveryPatternOf16BitsComesBack) {
  for (const zbcclDataType_t type : {zbcclBfloat16, zbcclFloat16}) {
    const uint32_t infinity = type == zbcclFloat16 ? 0x7C00 : 0x7F80;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      if ((bits & 0x7FFF) >= infinity) continue;
      const auto pattern = static_cast<uint16_t>(bits);
      float value = 0;
      widen(type, &pattern, {&value, 1});
      if (type == zbcclBfloat16) {
        ASSERT_EQ(std::bit_cast<uint32_t>(value), bits << 16);
      }
      uint16_t back = 0;
      narrow(type, {&value, 1}, &back);
      ASSERT_EQ(back, pattern);
    }
  }
}

TEST(MoeNumbers, RoundsToNearestEven) {
  const float values[] = {1 + 0x1p-8F, 1 + 3 * 0x1p-8F, 1 + 0x1.1p-8F, -0.0F, 3.4e38F};
  uint16_t bits[5];
  narrow(zbcclBfloat16, values, bits);
  EXPECT_EQ(bits[0], 0x3F80);
  EXPECT_EQ(bits[1], 0x3F82);
  EXPECT_EQ(bits[2], 0x3F81);
  EXPECT_EQ(bits[3], 0x8000);
  EXPECT_EQ(bits[4], 0x7F80);
}

TEST(MoeNumbers, QuantizesAGroup) {
  const float row[] = {448, -448, 26, 1, 0x1p-9F, 0, 17, -19};
  uint8_t codes[8];
  uint32_t scale = 0;
  quantize(zbcclMoeQuantFp8, row, codes, &scale);
  EXPECT_EQ(std::bit_cast<float>(scale), 1.0F);
  const uint8_t expected[] = {0x7E, 0xFE, 0x5D, 0x38, 0x01, 0x00, 0x58, 0xDA};
  EXPECT_TRUE(std::equal(std::begin(codes), std::end(codes), std::begin(expected)));

  const float wide[] = {449, 1};
  quantize(zbcclMoeQuantFp8Pow2, wide, codes, &scale);
  EXPECT_EQ(std::bit_cast<float>(scale), 2.0F);
  quantize(zbcclMoeQuantFp8Ue8m0, wide, codes, &scale);
  EXPECT_EQ(scale, 128u);

  const float integers[] = {127, -127, 2.5F, 3.5F, -0.4F};
  quantize(zbcclMoeQuantInt8, integers, codes, &scale);
  EXPECT_EQ(std::bit_cast<float>(scale), 1.0F);
  const int8_t rounded[] = {127, -127, 2, 4, 0};
  for (int i = 0; i < 5; ++i) EXPECT_EQ(static_cast<int8_t>(codes[i]), rounded[i]);
}

TEST(MoeShape, ExpertsLieInBlocks) {
  MoeShape shape;
  for (const int experts : {1, 3, 7, 256, 288}) {
    for (const int ranks : {1, 2, 3, 8, 13}) {
      shape.experts = experts;
      shape.ranks = ranks;
      EXPECT_EQ(first_expert(shape, 0), 0);
      EXPECT_EQ(first_expert(shape, ranks), experts);
      for (int expert = 0; expert < experts; ++expert) {
        const int owner = owner_of(shape, expert);
        EXPECT_GE(expert, first_expert(shape, owner));
        EXPECT_LT(expert, first_expert(shape, owner + 1));
      }
    }
  }
}

TEST(MoeBatch, ChoosesDifferentExpertsAndFiniteValues) {
  const MoeShape shape = small_shape(zbcclMoeRankMajor);
  const Batch batch(shape, {}, 1);
  const Batch skewed(shape, {true, false}, 1);
  for (int rank = 0; rank < shape.ranks; ++rank) {
    for (int64_t token = 0; token < shape.tokens; ++token) {
      const auto slots = batch.topk(rank).subspan(static_cast<size_t>(token) * 3, 3);
      EXPECT_EQ(std::set<int64_t>(slots.begin(), slots.end()).size(), 3u);
      EXPECT_EQ(skewed.topk(rank)[static_cast<size_t>(token) * 3], 0);
    }
  }
  std::vector<uint16_t> row(static_cast<size_t>(shape.hidden));
  std::vector<float> values(row.size());
  batch.token(1, 2, row.data());
  widen(shape.type, row.data(), values);
  EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }));
  std::vector<uint16_t> other(row.size());
  batch.result(1, 2, other.data());
  EXPECT_NE(row, other);
}

// Each slot has one row, and rows are in the order that zbccl/moe.h describes.
TEST(MoePlacement, CoversEverySlotInOrder) {
  for (const auto layout : {zbcclMoeRankMajor, zbcclMoeExpertMajor, zbcclMoeExpertMasked}) {
    const MoeShape shape = small_shape(layout);
    const Batch batch(shape, {false, true}, 3);
    size_t slots = 0;
    for (int rank = 0; rank < shape.ranks; ++rank) {
      const Placement placement(batch, rank);
      size_t begin = 0;
      for (const int32_t count : placement.expert_counts) {
        slots += static_cast<size_t>(count);
        if (layout == zbcclMoeRankMajor) continue;
        const size_t rows =
            layout == zbcclMoeExpertMasked ? 60 : (static_cast<size_t>(count) + 7) / 8 * 8;
        for (size_t i = begin; i < begin + rows; ++i) {
          EXPECT_EQ(placement.rows[i].rank >= 0, i < begin + static_cast<size_t>(count));
        }
        begin += rows;
      }
      if (layout != zbcclMoeRankMajor) {
        EXPECT_EQ(begin, placement.rows.size());
        continue;
      }
      EXPECT_TRUE(std::is_sorted(placement.rows.begin(), placement.rows.end(),
                                 [](const RowSource& a, const RowSource& b) {
                                   return std::pair(a.rank, a.token) < std::pair(b.rank, b.token);
                                 }));
    }
    size_t named = 0;
    for (int rank = 0; rank < shape.ranks; ++rank) {
      const auto topk = batch.topk(rank);
      named += static_cast<size_t>(
          std::count_if(topk.begin(), topk.end(), [](int64_t e) { return e >= 0; }));
    }
    EXPECT_EQ(slots, named);
  }
}

// The sizes that DeepEP's formulas give for DeepSeek-V3, in GiB.
TEST(MoeMemory, OfDeepEp) {
  MoeShape shape;
  shape.ranks = 8;
  shape.tokens = 128;
  shape.hidden = 7168;
  shape.experts = 256;
  shape.topk = 8;
  constexpr double kGiB = 1 << 30;
  EXPECT_NEAR(static_cast<double>(deep_ep_memory(shape).low_latency) / kGiB, 1.78, 0.005);
  EXPECT_NEAR(static_cast<double>(deep_ep_memory(shape).normal) / kGiB, 0.31, 0.005);
  shape.tokens = 4096;
  EXPECT_NEAR(static_cast<double>(deep_ep_memory(shape).elastic) / kGiB, 0.44, 0.005);
}

}  // namespace
}  // namespace zbccl::tools
