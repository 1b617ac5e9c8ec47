// Thresholds from known times, the tuning file, and the machine's key.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "calibrate/fit.h"
#include "calibrate/table.h"
#include "topology/machine_key.h"

namespace zbccl::tools {
namespace {

// a + b * bytes, at powers of four.
Curve line(double a, double b) {
  std::vector<Point> points;
  for (size_t bytes = 256; bytes <= 256 << 10; bytes *= 4) {
    points.push_back({bytes, a + b * static_cast<double>(bytes)});
  }
  return Curve(std::move(points));
}

TEST(Curve, GoesThroughItsPointsAndBetweenThem) {
  const Curve curve({{1024, 1}, {4096, 4}, {16384, 8}});
  EXPECT_NEAR(curve.at(1024), 1, 1e-9);
  EXPECT_NEAR(curve.at(4096), 4, 1e-9);
  EXPECT_NEAR(curve.at(2048), 2, 1e-9);
  EXPECT_NEAR(curve.at(16384), 8, 1e-9);
  EXPECT_NEAR(curve.at(65536), 16, 1e-9);
  EXPECT_NEAR(curve.at(512), 0.5, 1e-9);
  EXPECT_EQ(Curve().at(5), 0);
  EXPECT_EQ(Curve({{7, 3}}).at(5000), 3);
}

TEST(FitThreshold, FindsWhereTheLinesCross) {
  // 0.5 + 0.002 x and 1.5 + 0.0005 x meet at 667 bytes; the curve between two sizes is not quite a
  // line, so that the answer is near.
  const Threshold found = fit_threshold(line(0.5, 0.002), line(1.5, 0.0005), "a", "b", 0);
  EXPECT_FALSE(found.open);
  EXPECT_GT(found.bytes, 256u);
  EXPECT_LT(found.bytes, 1024u);
  EXPECT_NEAR(static_cast<double>(found.bytes), 667, 120);
  EXPECT_NE(found.why.find("at 256"), std::string::npos) << found.why;
}

TEST(FitThreshold, AlwaysAndNever) {
  const Threshold never = fit_threshold(line(2, 0.01), line(1, 0.01), "a", "b", 0);
  EXPECT_EQ(never.bytes, 1u);
  EXPECT_FALSE(never.open);
  const Threshold always = fit_threshold(line(1, 0.001), line(2, 0.001), "a", "b", 0);
  EXPECT_EQ(always.bytes, 256u << 10);
  EXPECT_TRUE(always.open);
}

TEST(FitThreshold, OneDisturbedSizeDoesNotTurnItOver) {
  std::vector<Point> points = line(0.5, 0.002).points();
  points[0].us = 1.9;  // the smallest size met something else on the machine
  const Threshold found = fit_threshold(line(0.5, 0.00001), line(4, 0.0001), "a", "b", 0);
  EXPECT_TRUE(found.open);
  const Threshold disturbed = fit_threshold(Curve(points), line(4, 0.0001), "a", "b", 0);
  EXPECT_GT(disturbed.bytes, 1024u);
}

TEST(FitThreshold, TheSecondWayHasToBeFasterByTheMargin) {
  const Curve same = line(1, 0.001);
  const Curve bit_faster = line(0.98, 0.00098);
  EXPECT_EQ(fit_threshold(same, bit_faster, "a", "b", 0).bytes, 1u);
  EXPECT_TRUE(fit_threshold(same, bit_faster, "a", "b", 0.05).open);
}

TEST(HoldOut, TellsWhatTheChoiceCosts) {
  const Curve first = line(0.5, 0.002);
  const Curve second = line(1.5, 0.0005);
  const Curve first_held({{512, 1.5}, {32768, 70}});
  const Curve second_held({{512, 1.8}, {32768, 18}});
  const Threshold threshold = fit_threshold(first, second, "a", "b", 0);
  const auto held = hold_out(threshold, first, second, first_held, second_held, "a", "b");
  ASSERT_EQ(held.size(), 2u);
  EXPECT_EQ(held[0].chosen, "a");
  EXPECT_EQ(held[0].measured_us, 1.5);
  EXPECT_NEAR(held[0].predicted_us, 1.52, 0.1);
  EXPECT_EQ(held[1].chosen, "b");
  EXPECT_EQ(held[1].best_us, 18);
}

TEST(ChooseWait, SpinsWhereEveryRankHasACore) {
  EXPECT_EQ(choose_wait(0.5, 0.49, 2, 2), "spin");
  EXPECT_EQ(choose_wait(5, 0.5, 2, 2), "sleep");
  EXPECT_EQ(choose_wait(10, 10.5, 4, 2), "sleep");
  EXPECT_EQ(choose_wait(2, 10, 4, 2), "spin");
}

class TuningFile : public testing::Test {
 protected:
  TuningFile() {
    std::string name = (std::filesystem::temp_directory_path() / "zbccl-tuning-XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~TuningFile() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

TEST_F(TuningFile, IsReadBackAsWritten) {
  const std::string path = folder_ / "some" / "folder" / "tuning.json";
  write_tuning(path, {"a machine", {{2, "spin", 512, 8 << 20}, {8, "sleep", 65536, 1}}});
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const TuningTable table = parse_tuning(text);
  EXPECT_EQ(table.machine, "a machine");
  ASSERT_EQ(table.entries.size(), 2u);
  EXPECT_EQ(table.entries[0].ranks, 2);
  EXPECT_EQ(table.entries[0].wait, "spin");
  EXPECT_EQ(table.entries[0].one_shot_max, 512u);
  EXPECT_EQ(table.entries[0].stream_min, 8u << 20);
  EXPECT_EQ(table.entries[1].wait, "sleep");
  // Nothing is left beside it.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_ / "some" / "folder"), {}), 1);
}

TEST_F(TuningFile, SaysWhatIsInForce) {
  const std::string path = folder_ / "tuning.json";
  EXPECT_NE(describe_tuning("", "m").find("HOME"), std::string::npos);
  EXPECT_NE(describe_tuning(path, "m").find("no file"), std::string::npos);
  write_tuning(path, {"another", {{2, "spin", 512, 1}}});
  EXPECT_NE(describe_tuning(path, "m").find("another machine"), std::string::npos);
  EXPECT_NE(describe_tuning(path, "another").find("one-shot up to 512 B"), std::string::npos);
  std::ofstream(path) << "{\"version\": 1, \"machine\": \"m\", \"entries\": [{\"ranks\": 0}]}";
  EXPECT_NE(describe_tuning(path, "m").find("is ignored"), std::string::npos);
}

TEST_F(TuningFile, WhatIsNoTable) {
  for (const char* text :
       {"", "[]", "{}", "{\"version\": 2, \"machine\": \"m\", \"entries\": []}",
        "{\"version\": 1, \"machine\": 5, \"entries\": []}",
        "{\"version\": 1, \"machine\": \"m\", \"entries\": [{\"ranks\": 2, \"wait\": \"nap\", "
        "\"one_shot_max\": 1, \"stream_min\": 1}]}"}) {
    EXPECT_THROW(parse_tuning(text), std::runtime_error) << text;
  }
  EXPECT_THROW(write_tuning("/proc/no/tuning.json", {}), std::runtime_error);
}

TEST_F(TuningFile, LiesWhereTheEnvironmentSays) {
  setenv("HOME", "/home/somebody", 1);
  unsetenv("XDG_CACHE_HOME");
  unsetenv("ZBCCL_TUNING_FILE");
  EXPECT_EQ(tuning_path(), "/home/somebody/.cache/zbccl/tuning.json");
  setenv("XDG_CACHE_HOME", "/cache", 1);
  EXPECT_EQ(tuning_path(), "/cache/zbccl/tuning.json");
  setenv("ZBCCL_TUNING_FILE", "/else/where.json", 1);
  EXPECT_EQ(tuning_path(), "/else/where.json");
  setenv("ZBCCL_TUNING_FILE", "none", 1);
  EXPECT_EQ(tuning_path(), "");
  unsetenv("ZBCCL_TUNING_FILE");
}

TEST(MachineKey, NamesModelProcessorsAndKernel) {
  const std::string cpuinfo = "processor\t: 0\nmodel\t\t: 167\nmodel name\t: Some CPU @ 2GHz \n";
  EXPECT_EQ(topology::machine_key(cpuinfo, 8, "6.1.0"),
            "Some CPU @ 2GHz, 8 processors, Linux 6.1.0");
  EXPECT_EQ(topology::machine_key("processor: 0\nCPU part\t: 0xd40\n", 4, "6"),
            "0xd40, 4 processors, Linux 6");
  EXPECT_EQ(topology::machine_key("", 1, "6"), "unknown processor, 1 processors, Linux 6");
  EXPECT_EQ(topology::machine_key(), topology::machine_key());
}

}  // namespace
}  // namespace zbccl::tools
