// The device plan's values from known times.
#include "calibrate/device_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "plan/explain.h"

namespace zbccl::tools {
namespace {

constexpr double kMiB = 1 << 20;

// fixed + slope * MiB of the size, from `smallest` to `largest`.
DeviceSweep::Way way(const std::string& algorithm, double fixed, double slope,
                     size_t largest = size_t{64} << 20, size_t smallest = 4096) {
  std::vector<Point> times;
  std::vector<Point> held;
  const auto us = [&](size_t bytes) { return fixed + slope * static_cast<double>(bytes) / kMiB; };
  for (size_t bytes = smallest; bytes <= largest; bytes *= 2) times.push_back({bytes, us(bytes)});
  for (size_t bytes = smallest / 2 * 3; bytes <= largest; bytes *= 4) {
    held.push_back({bytes, us(bytes)});
  }
  return {algorithm, Curve(std::move(times)), Curve(std::move(held))};
}

DeviceMeasured sums(int ranks) {
  DeviceMeasured measured;
  measured.ranks = ranks;
  measured.gpu = "a GPU";
  DeviceSweep sweep;
  sweep.operation = "all_reduce";
  // As far as they serve.
  sweep.ways = {way("one_shot", 2, 12, 1 << 20), way("two_shot", 4, 6, 2 << 20),
                way("two_shot_direct", 6, 4, 4 << 20), way("chunked", 9, 4.9),
                way("pull_push", 20, 4)};
  measured.sweeps = {sweep};
  return measured;
}

std::map<std::string, uint64_t> values_of(const std::vector<FittedLadder>& ladders) {
  std::map<std::string, uint64_t> values;
  for (const FittedLadder& ladder : ladders) {
    for (const FittedValue& value : ladder.values) {
      EXPECT_FALSE(value.why.empty());
      EXPECT_TRUE(values.emplace(value.field->name, value.value).second) << value.field->name;
    }
  }
  return values;
}

// Between the sizes that were measured, the answer is only near.
void expect_near(uint64_t value, double expected) {
  EXPECT_NEAR(static_cast<double>(value), expected, 0.3 * expected);
}

TEST(DeviceFit, LimitsLieWhereTheLinesCross) {
  const DeviceMeasured measured = sums(4);
  const std::vector<FittedLadder> ladders = fit_ladders(measured);
  ASSERT_EQ(ladders.size(), 1u);
  const auto values = values_of(ladders);
  ASSERT_EQ(values.size(), 4u);
  // With a margin of 2 % for the larger way.
  expect_near(values.at("one_shot_max"), 2 / 6.0 * kMiB);
  expect_near(values.at("two_shot_max"), kMiB);
  // Faster than what follows wherever it serves: 22 us at 4 MiB against 28.6 and 36.
  EXPECT_EQ(values.at("two_shot_direct_max"), 4u << 20);
  expect_near(values.at("pull_push_min"), 11 / 0.9 * kMiB);
  ASSERT_FALSE(ladders[0].held.empty());
  for (const HeldOut& held : ladders[0].held) {
    EXPECT_NEAR(held.predicted_us, held.measured_us, 0.1 * held.measured_us) << held.bytes;
    EXPECT_LE(held.measured_us, 1.1 * held.best_us) << held.bytes << " " << held.chosen;
  }
}

// The plan, tuned with what was found, takes the fastest way at every size.
TEST(DeviceFit, ThePlanThenTakesTheFastest) {
  const DeviceMeasured measured = sums(4);
  plan::DeviceTuning tuning = plan::device_tuning(4, plan::kMostLanding);
  for (const FittedLadder& ladder : fit_ladders(measured)) {
    for (const FittedValue& value : ladder.values) tuning.*value.field->value = value.value;
  }
  for (size_t bytes = 4096; bytes <= size_t{64} << 20; bytes *= 2) {
    const plan::Question question{Operation::kAllReduce, bytes, DataType::kBf16, 4, 4096, 0};
    const std::string taken = plan::explain(question, tuning, {}).algorithm;
    double best = 0;
    double mine = 0;
    for (const DeviceSweep::Way& it : measured.sweeps[0].ways) {
      for (const Point& point : it.times.points()) {
        if (point.bytes != bytes) continue;
        best = best == 0 ? point.us : std::min(best, point.us);
        if (it.algorithm == taken) mine = point.us;
      }
    }
    EXPECT_GT(mine, 0) << taken << " was not measured at " << bytes;
    EXPECT_LE(mine, 1.021 * best) << taken << " at " << bytes;
  }
}

// The forms of one algorithm have a limit, and no line of their own.
TEST(DeviceFit, FormsOfAnAlgorithm) {
  DeviceMeasured measured = sums(4);
  DeviceSweep forms;
  forms.operation = "all_reduce";
  forms.ways = {way("one_kernel", 5, 4, 64 << 20, 1 << 20),
                way("two_kernels", 37, 3, 64 << 20, 1 << 20)};
  measured.sweeps.insert(measured.sweeps.begin(), forms);
  const std::vector<FittedLadder> ladders = fit_ladders(measured);
  ASSERT_EQ(ladders.size(), 2u);
  EXPECT_EQ(ladders[0].sweep, measured.sweeps.data());
  const auto values = values_of(ladders);
  EXPECT_EQ(values.size(), 5u);
  expect_near(values.at("spread_min"), 32 * kMiB);
  EXPECT_EQ(fit_costs(measured).size(), 5u);
}

TEST(DeviceFit, NeverAndAlways) {
  DeviceMeasured measured = sums(2);
  measured.sweeps[0].ways = {way("one_shot", 50, 50, 1 << 20), way("two_shot", 4, 6, 4 << 20),
                             way("two_shot_direct", 6, 50, 8 << 20), way("chunked", 5, 4),
                             way("pull_push", 20, 4)};
  const auto values = values_of(fit_ladders(measured));
  EXPECT_EQ(values.at("one_shot_max"), 1u);
  EXPECT_EQ(values.at("two_shot_direct_max"), 1u);
  EXPECT_GT(values.at("pull_push_min"), uint64_t{1} << 39);
}

TEST(DeviceFit, LimitsAreInWhatThePlanCompares) {
  DeviceMeasured measured;
  measured.ranks = 4;
  DeviceSweep gather;
  gather.operation = "all_gather";
  // They cross at 1 MiB in all: blocks of 256 KiB.
  gather.ways = {way("inline", 2, 10, 2 << 20), way("push", 8, 4), way("push_bulk", 9, 5)};
  DeviceSweep few = gather;
  few.max_blocks = 16;
  few.ways = {way("push", 4, 10, 64 << 20, 256 << 10),
              way("push_bulk", 10, 4, 64 << 20, 256 << 10)};
  DeviceSweep scatter;
  scatter.operation = "reduce_scatter";
  scatter.ways = {way("one_shot", 2, 10, 2 << 20), way("pull", 8, 4)};
  DeviceSweep norm;
  norm.operation = "all_reduce_rms_norm";
  norm.ways = {way("one_shot", 2, 10, 1 << 20, 8192), way("two_shot_direct", 4, 6, 4 << 20, 8192),
               way("pull_push", 12, 4, 64 << 20, 8192)};
  measured.sweeps = {gather, few, scatter, norm};
  const auto values = values_of(fit_ladders(measured));
  ASSERT_EQ(values.size(), 5u);
  expect_near(values.at("inline_max"), kMiB / 4);
  expect_near(values.at("bulk_min"), kMiB / 4);
  expect_near(values.at("scatter_shot_max"), kMiB);
  expect_near(values.at("norm_one_shot_max"), kMiB / 2);
  expect_near(values.at("norm_direct_max"), 4 * kMiB);
}

TEST(DeviceFit, TwoRanksHaveNoRelay) {
  DeviceMeasured measured;
  measured.ranks = 2;
  DeviceSweep broadcast;
  broadcast.operation = "broadcast";
  broadcast.ways = {way("inline", 2, 10, 1 << 20), way("push", 8, 4)};
  measured.sweeps = {broadcast};
  EXPECT_TRUE(values_of(fit_ladders(measured)).empty());
  measured.ranks = 4;
  measured.sweeps[0].ways.push_back(way("relay", 10, 3));
  measured.sweeps[0].ways.push_back(way("chain", 40, 2));
  const auto values = values_of(fit_ladders(measured));
  expect_near(values.at("relay_min"), 2 * kMiB);
  expect_near(values.at("chain_min"), 30 * kMiB);
}

TEST(DeviceFit, LinesAreFoundAgain) {
  const plan::Line line = fit_line({{0.1, 2.3}, {1, 5}, {8, 26}});
  EXPECT_NEAR(line.fixed_us, 2, 1e-9);
  EXPECT_NEAR(line.us_per_mib, 3, 1e-9);
  EXPECT_EQ(fit_line({{1, 5}}).us_per_mib, 0);
  EXPECT_EQ(fit_line({{1, 5}}).fixed_us, 5);
  EXPECT_EQ(fit_line({}).fixed_us, 0);
  // Nothing below zero.
  EXPECT_EQ(fit_line({{1, 5}, {2, 4}}).us_per_mib, 0);
  EXPECT_EQ(fit_line({{1, 1}, {2, 4}}).fixed_us, 0);
  const DeviceMeasured measured = sums(4);
  const auto costs = fit_costs(measured);
  ASSERT_EQ(costs.size(), 5u);
  EXPECT_EQ(costs[0].algorithm, plan::DeviceAlgorithm::kOneShot);
  // Three peers' inputs over the link; of the slices twice three quarters.
  EXPECT_NEAR(costs[0].line.us_per_mib, 12 / 3.0, 1e-6);
  EXPECT_NEAR(costs[4].line.us_per_mib, 4 / 1.5, 1e-6);
  EXPECT_NEAR(costs[4].line.fixed_us, 20, 1e-3);
  // What explain() then predicts is what was measured.
  const plan::Question question{Operation::kAllReduce, 32 << 20, DataType::kBf16, 4, 4096, 0};
  const auto told = plan::explain(question, plan::device_tuning(4, plan::kMostLanding), costs);
  EXPECT_NEAR(*told.candidates.front().us, 20 + 4 * 32, 0.1);
}

TEST(DeviceFit, FewBlocksAreWorthMore) {
  EXPECT_EQ(choose_blocks(Curve({{16, 100}, {32, 51}, {64, 50.5}, {128, 50}})), 32u);
  EXPECT_EQ(choose_blocks(Curve({{16, 100}, {32, 52}, {64, 50.5}, {128, 50}})), 64u);
  EXPECT_EQ(choose_blocks(Curve()), 0u);
}

TEST(DeviceFit, WhatRanksTellIsReadBack) {
  DeviceMeasured measured = sums(3);
  measured.grids = {{"pull_blocks", "all_reduce", 1 << 24, Curve({{16, 1.5}, {32, 1.25}})}};
  measured.sweeps[0].max_blocks = 16;
  const std::string text = to_json(measured);
  const DeviceMeasured read = parse_device_measured(text);
  EXPECT_EQ(to_json(read), text);
  EXPECT_EQ(read.gpu, "a GPU");
  EXPECT_EQ(read.grids[0].times.points()[1].us, 1.25);
  EXPECT_EQ(read.sweeps[0].ways[4].times.points().size(), 15u);
  EXPECT_ANY_THROW(parse_device_measured("{}"));
}

}  // namespace
}  // namespace zbccl::tools
