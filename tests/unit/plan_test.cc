#include "plan/plan.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace zbccl::plan {
namespace {

TEST(Plan, ChunksCoverEveryElementOnce) {
  for (const size_t element : {1u, 2u, 4u, 8u}) {
    for (int nranks = 1; nranks <= 17; ++nranks) {
      for (const size_t count :
           {0u, 1u, 2u, 31u, 32u, 33u, 127u, 128u, 129u, 1000u, 4096u, 99991u}) {
        size_t next = 0;
        for (int r = 0; r < nranks; ++r) {
          const Range range = chunk_of(count, element, r, nranks);
          ASSERT_EQ(range.begin, next) << count << " elements on " << nranks;
          ASSERT_LE(range.begin, range.end);
          // Whole lines: two ranks never write the same one.
          if (range.end < count) {
            ASSERT_EQ(range.end * element % 128, 0u);
          }
          next = range.end;
        }
        ASSERT_EQ(next, count);
      }
    }
  }
}

TEST(Plan, ChunksAreEven) {
  const Range first = chunk_of(1 << 20, 4, 0, 8);
  for (int r = 0; r < 8; ++r) EXPECT_EQ(chunk_of(1 << 20, 4, r, 8).size(), first.size());
}

TEST(Plan, ChoosesByOperationAndSize) {
  for (const bool spin : {false, true}) {
    for (int nranks = 2; nranks <= 64; nranks *= 2) {
      const Tuning tuning = tuning_for(nranks, spin, {}, 0);
      const uint64_t edge = tuning.one_shot_max;
      EXPECT_GE(tuning.outbox_bytes, edge);
      EXPECT_EQ(choose(Operation::kAllReduce, 0, nranks, tuning), Algorithm::kOneShot);
      EXPECT_EQ(choose(Operation::kAllReduce, edge, nranks, tuning), Algorithm::kOneShot);
      EXPECT_EQ(choose(Operation::kAllReduce, edge + 1, nranks, tuning), Algorithm::kTwoShot);
      EXPECT_EQ(choose(Operation::kReduceScatter, edge, nranks, tuning), Algorithm::kOneShot);
      EXPECT_EQ(choose(Operation::kReduceScatter, edge + 1, nranks, tuning), Algorithm::kDirect);
      EXPECT_EQ(choose(Operation::kAllGather, 1, nranks, tuning), Algorithm::kDirect);
      EXPECT_EQ(choose(Operation::kBroadcast, 1 << 30, nranks, tuning), Algorithm::kDirect);
      for (const Operation moved : {Operation::kGather, Operation::kScatter, Operation::kAllToAll,
                                    Operation::kAllGatherV, Operation::kAllToAllV}) {
        EXPECT_EQ(choose(moved, edge, nranks, tuning), Algorithm::kDirect);
      }
      EXPECT_EQ(choose(Operation::kReduce, edge, nranks, tuning), Algorithm::kOneShot);
      EXPECT_EQ(choose(Operation::kReduce, edge + 1, nranks, tuning), Algorithm::kTwoShot);
      EXPECT_EQ(choose(Operation::kReduceScatterV, edge + 1, nranks, tuning), Algorithm::kDirect);
      EXPECT_EQ(choose(Operation::kBarrier, 0, nranks, tuning), Algorithm::kSignal);
    }
  }
}

TEST(Plan, TheOverrideMovesTheThresholdWithinTheOutbox) {
  EXPECT_EQ(tuning_for(4, true, {}, 1).one_shot_max, 1u);
  const Tuning large = tuning_for(4, true, {}, uint64_t{1} << 30);
  EXPECT_EQ(large.one_shot_max, large.outbox_bytes);
  EXPECT_LE(large.outbox_bytes, uint64_t{64} << 20);
}

TEST(Plan, TakesTheNearestFitNotAbove) {
  const std::vector<Fit> fits = {{2, 0, 100, 1000}, {8, 0, 200, 2000}, {4, 1, 300, 3000}};
  EXPECT_EQ(tuning_for(2, true, fits, 0).one_shot_max, 100u);
  EXPECT_EQ(tuning_for(7, true, fits, 0).stream_min, 1000u);
  EXPECT_EQ(tuning_for(64, true, fits, 0).one_shot_max, 200u);
  EXPECT_EQ(tuning_for(64, false, fits, 0).one_shot_max, 300u);
  EXPECT_EQ(tuning_for(64, false, fits, 5).one_shot_max, 5u);
  // None for so few ranks that wait so: as without a table.
  EXPECT_EQ(tuning_for(2, false, fits, 0).one_shot_max, tuning_for(2, false, {}, 0).one_shot_max);
  const Fit huge = {1, 0, ~uint64_t{0}, 1};
  EXPECT_EQ(tuning_for(2, true, {&huge, 1}, 0).one_shot_max,
            tuning_for(2, true, {&huge, 1}, 0).outbox_bytes);
}

TEST(Plan, NamesEveryAlgorithm) {
  for (int i = 0; i <= static_cast<int>(Algorithm::kDirect); ++i) {
    EXPECT_NE(std::string(algorithm_name(static_cast<Algorithm>(i))), "unknown");
  }
  EXPECT_STREQ(algorithm_name(static_cast<Algorithm>(99)), "unknown");
}

}  // namespace
}  // namespace zbccl::plan
