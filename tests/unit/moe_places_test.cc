// Who holds which expert, what tokens ask for, and where rows go.
#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <vector>

#include "moe/experts.h"
#include "moe/places.h"
#include "moe/topk.h"

namespace zbccl::moe {
namespace {

ExpertMap make_map(int32_t experts, int ranks, const int32_t* where = nullptr) {
  auto map = ExpertMap::make(experts, where, ranks);
  EXPECT_TRUE(map.ok()) << map.status().message();
  return *map;
}

TEST(ExpertMap, MakesContiguousBlocks) {
  const ExpertMap map = make_map(11, 4);  // 3, 3, 3, 2
  const int32_t want[] = {0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3};
  for (int32_t e = 0; e < 11; ++e) EXPECT_EQ(want[e], map.rank_of(e)) << e;
  EXPECT_EQ(2, map.local_of(5));
  EXPECT_EQ(0, map.local_of(9));
  EXPECT_EQ(9, map.first_place(3));
}

TEST(ExpertMap, HasRanksWithoutExperts) {
  const ExpertMap few = make_map(2, 4);
  EXPECT_EQ(1U, few.experts_of(1).size());
  EXPECT_TRUE(few.experts_of(3).empty());
  const int32_t where[] = {3, 1, 3, 1, 1};
  const ExpertMap map = make_map(5, 4, where);
  EXPECT_TRUE(map.experts_of(0).empty());
  EXPECT_EQ((std::vector<int32_t>{1, 3, 4}),
            std::vector<int32_t>(map.experts_of(1).begin(), map.experts_of(1).end()));
  EXPECT_EQ(1, map.local_of(2));
  EXPECT_EQ(3, map.place_of(0));
}

TEST(ExpertMap, RefusesWhatIsNone) {
  const int32_t where[] = {0, 2};
  EXPECT_EQ(Code::kInvalidArgument, ExpertMap::make(2, where, 2).status().code());
  EXPECT_EQ(Code::kInvalidArgument, ExpertMap::make(0, nullptr, 2).status().code());
  EXPECT_EQ(Code::kInvalidArgument, ExpertMap::make(-3, nullptr, 2).status().code());
}

TEST(Topk, CountsAndListsSlotsAndTokens) {
  const int32_t where[] = {1, 0, 1};
  const ExpertMap map = make_map(3, 2, where);
  const std::vector<int64_t> topk_idx = {0, 2, -1, 1, 2, 2, -1, -1, 1, 0};  // five tokens
  std::vector<int32_t> experts(10);
  std::vector<int32_t> counts(3);
  std::vector<int32_t> rank_counts(2);
  ASSERT_TRUE(
      read_topk(topk_idx.data(), DataType::kI64, 5, 2, map, experts.data(), counts, rank_counts)
          .ok());
  EXPECT_EQ((std::vector<int32_t>{2, 2, 3}), counts);
  EXPECT_EQ((std::vector<int32_t>{2, 3}), rank_counts);
  std::vector<uint32_t> slots(7);
  list_slots(experts, map, counts, slots.data());
  EXPECT_EQ((std::vector<uint32_t>{3, 8, 0, 9, 1, 4, 5}), slots);
  std::vector<uint32_t> tokens(5);
  list_tokens(experts, 2, map, rank_counts, tokens.data());
  EXPECT_EQ((std::vector<uint32_t>{1, 4, 0, 2, 4}), tokens);
}

TEST(Topk, RefusesWhatIsNoExpert) {
  const ExpertMap map = make_map(3, 1);
  std::vector<int32_t> experts(4);
  std::vector<int32_t> counts(3);
  std::vector<int32_t> rank_counts(1);
  const auto read = [&](std::vector<int64_t> idx) {
    return read_topk(idx.data(), DataType::kI64, 2, 2, map, experts.data(), counts, rank_counts);
  };
  EXPECT_TRUE(read({0, 1, 2, -1}).ok());
  EXPECT_EQ("topk_idx[1, 0] is 3, expected -1 or an expert; there are 3",
            read({0, 1, 3, -1}).message());
  EXPECT_EQ(Code::kInvalidArgument, read({-2, 0, 0, 0}).code());
  EXPECT_EQ(Code::kInvalidArgument, read({0, int64_t{1} << 32, 0, 0}).code());
  EXPECT_EQ(Code::kInvalidArgument, read({0, 0, 0, std::numeric_limits<int64_t>::min()}).code());
}

// Two ranks of two experts each; what rank 1 gets.
Table table_of(int64_t capacity) {
  Table table;
  table.counts = {1, 0, 3, 2, 0, 5, 4, 0};
  table.rank_counts = {1, 4, 5, 3};
  table.capacities = {capacity, capacity};
  return table;
}

TEST(Places, OfRanks) {
  const ExpertMap map = make_map(4, 2);
  const auto places = places_of(table_of(0), map, 1, Layout::kRankMajor, 1);
  ASSERT_TRUE(places.ok());
  EXPECT_EQ((std::vector<int64_t>{0, 4, 7}), places->offsets);
  EXPECT_EQ(7, places->num_rows);
  EXPECT_EQ(7, places->allocated_rows);
  EXPECT_FALSE(places->overflow);
  const auto tight = places_of(table_of(5), map, 1, Layout::kRankMajor, 1);
  EXPECT_EQ(5, tight->num_rows);
  EXPECT_EQ(7, tight->needed_capacity);
  EXPECT_TRUE(tight->overflow);
}

TEST(Places, OfExperts) {
  const ExpertMap map = make_map(4, 2);
  const auto places = places_of(table_of(0), map, 1, Layout::kExpertMajor, 4);
  ASSERT_TRUE(places.ok());
  EXPECT_EQ((std::vector<int64_t>{0, 8, 12}), places->offsets);
  EXPECT_EQ((std::vector<int64_t>{0, 3, 8, 10}), places->begins);
  EXPECT_EQ(12, places->num_rows);
  const auto masked = places_of(table_of(6), map, 1, Layout::kExpertMasked, 1);
  EXPECT_EQ((std::vector<int64_t>{0, 6, 12}), masked->offsets);
  EXPECT_EQ((std::vector<int64_t>{0, 3, 6, 8}), masked->begins);
  EXPECT_EQ(12, masked->allocated_rows);
  EXPECT_EQ(7, masked->needed_capacity);
  EXPECT_TRUE(masked->overflow);
  EXPECT_EQ(3, rows_kept(3, 4, 6));
  EXPECT_EQ(0, rows_kept(9, 4, 6));
}

TEST(Places, CountsOfRowsAreBounded) {
  const ExpertMap map = make_map(1, 2);
  Table table;
  table.counts = {0x7FFFFFFF, 1};
  table.rank_counts = {0x7FFFFFFF, 0, 1, 0};
  table.capacities = {0, 0};
  for (const Layout layout : {Layout::kRankMajor, Layout::kExpertMajor}) {
    const auto places = places_of(table, map, 0, layout, 1);
    EXPECT_EQ(Code::kInvalidUsage, places.status().code());
    EXPECT_NE(std::string::npos, places.status().message().find("2147483648 rows"));
  }
}

}  // namespace
}  // namespace zbccl::moe
