#include <gtest/gtest.h>

#include <map>
#include <random>

#include "memory/cuda/block_map.h"

namespace zbccl::cuda {
namespace {

using memory::Use;

constexpr uint64_t kUnit = BlockMap::kAlignment;

TEST(BlockMap, TakesTheSmallestRangeThatHolds) {
  BlockMap map;
  map.add_range(0, 8 * kUnit);
  map.add_range(100 * kUnit, 2 * kUnit);
  EXPECT_EQ(map.allocate(2 * kUnit, Use::kUser), 100 * kUnit);
  EXPECT_EQ(map.allocate(3 * kUnit, Use::kScratch), 0u);
  EXPECT_EQ(map.allocate(6 * kUnit, Use::kUser), std::nullopt);
  EXPECT_EQ(map.used(Use::kUser), 2 * kUnit);
  EXPECT_EQ(map.used(Use::kScratch), 3 * kUnit);
  EXPECT_EQ(map.total_free(), 5 * kUnit);
}

TEST(BlockMap, JoinsRangesThatTouch) {
  BlockMap map;
  map.add_range(0, 4 * kUnit);
  map.add_range(8 * kUnit, 4 * kUnit);
  map.add_range(4 * kUnit, 4 * kUnit);
  EXPECT_EQ(map.allocate(12 * kUnit, Use::kUser), 0u);
  EXPECT_EQ(map.free(0), 12 * kUnit);
  EXPECT_EQ(map.free(0), 0u) << "it is free already";
  EXPECT_EQ(map.free(kUnit), 0u) << "nothing starts there";
  EXPECT_EQ(map.free_before(12 * kUnit), 12 * kUnit);
  EXPECT_EQ(map.free_before(4 * kUnit), 0u) << "no range ends there";
}

TEST(BlockMap, GivesUpOnlyWhatIsWhollyFree) {
  BlockMap map;
  map.add_range(0, 12 * kUnit);
  const auto block = map.allocate(kUnit, Use::kUser);
  ASSERT_EQ(block, 0u);
  EXPECT_FALSE(map.is_free(0, 4 * kUnit));
  EXPECT_TRUE(map.is_free(4 * kUnit, 4 * kUnit));
  map.remove_range(4 * kUnit, 4 * kUnit);
  EXPECT_FALSE(map.is_free(4 * kUnit, 4 * kUnit));
  EXPECT_EQ(map.total_free(), 7 * kUnit);
  EXPECT_EQ(map.allocate(4 * kUnit, Use::kUser), 8 * kUnit);
  EXPECT_EQ(map.allocate(4 * kUnit, Use::kUser), std::nullopt) << "3 before the hole";
  map.remove_range(0, 2 * kUnit);
  EXPECT_EQ(map.total_free(), 3 * kUnit) << "a block lies in it, so nothing was taken away";
}

TEST(BlockMap, RoundsSizesUp) {
  EXPECT_EQ(BlockMap::rounded(0), kUnit);
  EXPECT_EQ(BlockMap::rounded(1), kUnit);
  EXPECT_EQ(BlockMap::rounded(kUnit), kUnit);
  EXPECT_EQ(BlockMap::rounded(kUnit + 1), 2 * kUnit);
}

TEST(BlockMap, BlocksNeverOverlapAndNothingIsLost) {
  BlockMap map;
  constexpr uint64_t kTotal = 4096 * kUnit;
  map.add_range(0, kTotal / 2);
  map.add_range(kTotal / 2, kTotal / 2);
  std::mt19937 random(7);
  std::map<uint64_t, uint64_t> live;
  uint64_t used = 0;
  for (int step = 0; step < 20'000; ++step) {
    if (random() % 2 == 0) {
      const uint64_t size = (1 + random() % 64) * kUnit;
      const auto at = map.allocate(size, Use::kUser);
      if (!at) continue;
      const auto next = live.lower_bound(*at);
      ASSERT_TRUE(next == live.end() || next->first >= *at + size);
      ASSERT_TRUE(next == live.begin() || std::prev(next)->first + std::prev(next)->second <= *at);
      ASSERT_LE(*at + size, kTotal);
      live[*at] = size;
      used += size;
    } else if (!live.empty()) {
      const auto it = std::next(live.begin(), static_cast<long>(random() % live.size()));
      ASSERT_EQ(map.free(it->first), it->second);
      used -= it->second;
      live.erase(it);
    }
    ASSERT_EQ(map.used(Use::kUser), used);
    ASSERT_EQ(map.total_free(), kTotal - used);
  }
  for (const auto& [at, size] : live) EXPECT_EQ(map.free(at), size);
  EXPECT_EQ(map.allocate(kTotal, Use::kUser), 0u) << "all in one piece again";
}

}  // namespace
}  // namespace zbccl::cuda
