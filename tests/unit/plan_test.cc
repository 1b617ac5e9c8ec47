#include "plan/plan.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "plan/device_plan.h"

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

DeviceCall norm_call(uint64_t rows, uint64_t row_bytes, int nranks) {
  DeviceCall call;
  call.operation = Operation::kAllReduceRmsNorm;
  call.type = DataType::kBf16;
  call.bytes = rows * row_bytes;
  call.rows = rows;
  call.longest =
      (rows + static_cast<uint64_t>(nranks) - 1) / static_cast<uint64_t>(nranks) * row_bytes;
  call.nranks = nranks;
  return call;
}

TEST(DevicePlan, NormsGoWholeByLandingOrWhereTheyLie) {
  for (const int nranks : {2, 4, 8}) {
    const DeviceTuning tuning = device_tuning(nranks, kMostLanding);
    const auto algorithm = [&](uint64_t rows) {
      return choose(norm_call(rows, 8192, nranks), tuning).algorithm;
    };
    EXPECT_EQ(algorithm(1), DeviceAlgorithm::kOneShot);
    EXPECT_EQ(algorithm(tuning.norm_one_shot_max / 8192), DeviceAlgorithm::kOneShot);
    EXPECT_EQ(algorithm(tuning.norm_one_shot_max / 8192 + 1), DeviceAlgorithm::kTwoShotDirect);
    EXPECT_EQ(algorithm(2048), DeviceAlgorithm::kPullPush);
    // Whatever fits no slot is read where it lies.
    const DeviceTuning little = device_tuning(nranks, kLeastLanding);
    for (uint64_t rows = 1; rows < 3000; rows = rows * 3 + 1) {
      const DevicePlan plan = choose(norm_call(rows, 8192, nranks), little);
      const uint64_t landed = plan.algorithm == DeviceAlgorithm::kOneShot ? rows * 8192
                              : plan.algorithm == DeviceAlgorithm::kTwoShotDirect
                                  ? norm_call(rows, 8192, nranks).longest
                                  : 0;
      EXPECT_LE(landed * static_cast<uint64_t>(nranks), little.slot_bytes) << rows;
      EXPECT_GE(plan.blocks, 1);
      EXPECT_LE(static_cast<uint64_t>(plan.blocks), rows);
    }
  }
}

TEST(DevicePlan, OneRankReadsItsOwnRows) {
  const DeviceTuning tuning = device_tuning(1, kMostLanding);
  EXPECT_EQ(choose(norm_call(3, 8192, 1), tuning).algorithm, DeviceAlgorithm::kPullPush);
}

TEST(DevicePlan, SumsOfCodesHaveAWarpForEachTile) {
  const DeviceTuning tuning = device_tuning(4, kMostLanding);
  DeviceCall call;
  call.operation = Operation::kAllReduceQuantized;
  call.nranks = 4;
  for (const uint64_t share : {0U, 1U, 4U, 5U, 512U, 513U, 100'000U}) {
    call.share = share;
    const DevicePlan plan = choose(call, tuning);
    EXPECT_EQ(plan.algorithm, DeviceAlgorithm::kTwoShot);
    EXPECT_GE(plan.blocks, 1);
    EXPECT_LE(plan.blocks, 128);
    if (share <= 512) {
      EXPECT_GE(static_cast<uint64_t>(plan.blocks) * 4, share);
    }
  }
}

TEST(DevicePlan, EveryFieldCanBeReplaced) {
  DeviceTuning tuning = device_tuning(8, kMostLanding);
  EXPECT_TRUE(override_tuning(
      "norm_one_shot_max=1,norm_direct_max=2,norm_blocks=3,quantized_blocks=4", &tuning));
  EXPECT_EQ(tuning.norm_one_shot_max, 1U);
  EXPECT_EQ(tuning.norm_direct_max, 2U);
  EXPECT_EQ(tuning.norm_blocks, 3U);
  EXPECT_EQ(tuning.quantized_blocks, 4U);
  EXPECT_EQ(choose(norm_call(1, 8192, 8), tuning).algorithm, DeviceAlgorithm::kPullPush);
  EXPECT_FALSE(override_tuning("norm_rows=1", &tuning));
}

TEST(DevicePlan, EveryAlgorithmHasANameOfItsOwn) {
  for (int i = 1; i < kNumDeviceAlgorithms; ++i) {
    const auto algorithm = static_cast<DeviceAlgorithm>(i);
    ASSERT_TRUE(parse_device_algorithm(algorithm_name(algorithm)).has_value());
    EXPECT_EQ(*parse_device_algorithm(algorithm_name(algorithm)), algorithm);
  }
  EXPECT_FALSE(parse_device_algorithm("none").has_value());
}

DeviceCall movement(Operation operation, uint64_t bytes, bool in_place = false) {
  DeviceCall call;
  call.operation = operation;
  call.bytes = bytes;
  call.in_place = in_place;
  call.nranks = 4;
  return call;
}

TEST(DevicePlan, CopyEnginesAreAskedFor) {
  DeviceTuning tuning = device_tuning(4, kMostLanding);
  constexpr uint64_t kLarge = uint64_t{1} << 30;
  EXPECT_NE(choose(movement(Operation::kAllGather, kLarge), tuning).algorithm,
            DeviceAlgorithm::kCopyEngine);
  ASSERT_TRUE(override_tuning("copy_engine_min=4096", &tuning));
  for (const Operation operation :
       {Operation::kAllGather, Operation::kBroadcast, Operation::kAllToAll, Operation::kGather}) {
    const auto algorithm = [&](uint64_t bytes) {
      return choose(movement(operation, bytes), tuning).algorithm;
    };
    EXPECT_NE(algorithm(4095), DeviceAlgorithm::kCopyEngine);
    EXPECT_EQ(algorithm(4096), DeviceAlgorithm::kCopyEngine);
    EXPECT_EQ(algorithm(kLarge), DeviceAlgorithm::kCopyEngine);
  }
  // No rank knows all sizes; no blocks; a sum.
  for (const Operation operation :
       {Operation::kAllToAllV, Operation::kBarrier, Operation::kAllReduce}) {
    EXPECT_NE(choose(movement(operation, kLarge), tuning).algorithm, DeviceAlgorithm::kCopyEngine);
  }
  tuning.forced = DeviceAlgorithm::kCopyEngine;
  EXPECT_EQ(choose(movement(Operation::kAllToAllV, 1), tuning).algorithm,
            DeviceAlgorithm::kCopyEngine);
  EXPECT_NE(choose(movement(Operation::kBarrier, 0), tuning).algorithm,
            DeviceAlgorithm::kCopyEngine);
}

TEST(DevicePlan, ExchangesInPlaceAreSwapped) {
  DeviceTuning tuning = device_tuning(4, kMostLanding);
  const auto algorithm = [&](uint64_t bytes, bool in_place) {
    return choose(movement(Operation::kAllToAll, bytes, in_place), tuning).algorithm;
  };
  EXPECT_EQ(algorithm(tuning.inline_max, true), DeviceAlgorithm::kInline);
  EXPECT_EQ(algorithm(tuning.inline_max + 1, true), DeviceAlgorithm::kSwap);
  EXPECT_EQ(algorithm(tuning.inline_max + 1, false), DeviceAlgorithm::kPush);
  tuning.copy_engine_min = 1;
  EXPECT_EQ(algorithm(tuning.inline_max + 1, true), DeviceAlgorithm::kSwap);
  tuning.forced = DeviceAlgorithm::kSwap;
  EXPECT_EQ(algorithm(1, true), DeviceAlgorithm::kSwap);
  EXPECT_NE(algorithm(1, false), DeviceAlgorithm::kSwap);
}

TEST(DevicePlan, RingsAreAskedFor) {
  DeviceTuning tuning = device_tuning(4, kMostLanding);
  DeviceCall sum = movement(Operation::kAllReduce, uint64_t{1} << 28);
  sum.share = sum.bytes / 4;
  DeviceCall gather = movement(Operation::kAllGather, uint64_t{1} << 26);
  EXPECT_EQ(choose(sum, tuning).algorithm, DeviceAlgorithm::kPullPush);
  EXPECT_EQ(choose(gather, tuning).algorithm, DeviceAlgorithm::kPush);
  ASSERT_TRUE(override_tuning("ring_min=67108864,relaxed_ring_min=268435456", &tuning));
  EXPECT_EQ(choose(sum, tuning).algorithm, DeviceAlgorithm::kRelaxedRing);
  EXPECT_EQ(choose(gather, tuning).algorithm, DeviceAlgorithm::kRing);
  --sum.bytes;
  --gather.bytes;
  EXPECT_EQ(choose(sum, tuning).algorithm, DeviceAlgorithm::kPullPush);
  EXPECT_EQ(choose(gather, tuning).algorithm, DeviceAlgorithm::kPush);
  // The others' outputs lie where only they know.
  EXPECT_EQ(choose(movement(Operation::kAllGatherV, uint64_t{1} << 28), tuning).algorithm,
            DeviceAlgorithm::kPush);
}

// Pieces are whole packs, and landing memory holds what a grid has under way.
TEST(DevicePlan, RingsFit) {
  for (const uint64_t landing : {kLeastLanding, kMostLanding}) {
    for (const int nranks : {2, 3, 8, 16}) {
      DeviceTuning tuning = device_tuning(nranks, landing);
      tuning.ring_min = tuning.relaxed_ring_min = 0;
      for (const uint64_t bytes : {1ULL, 4095ULL, 1ULL << 20, 1ULL << 27, (1ULL << 33) + 7}) {
        DeviceCall call = movement(Operation::kAllGather, bytes);
        call.nranks = nranks;
        tuning.inline_max = 0;
        const DevicePlan gather = choose(call, tuning);
        ASSERT_EQ(gather.algorithm, DeviceAlgorithm::kRing);
        EXPECT_EQ(gather.piece % 16, 0U);
        EXPECT_GT(gather.piece, 0U);
        EXPECT_LE(gather.blocks, 128);
        call.operation = Operation::kAllReduce;
        call.share = (bytes + static_cast<uint64_t>(nranks) - 1) / static_cast<uint64_t>(nranks);
        const DevicePlan sum = choose(call, tuning);
        ASSERT_EQ(sum.algorithm, DeviceAlgorithm::kRelaxedRing);
        EXPECT_GE(sum.blocks, 1);
        EXPECT_LE(
            static_cast<uint64_t>(sum.blocks) * static_cast<uint64_t>(sum.threads) * 4 * 16 * 4,
            tuning.tiles_bytes);
      }
    }
  }
}

}  // namespace
}  // namespace zbccl::plan
