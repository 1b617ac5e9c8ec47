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

TEST(FitHostCost, FindsTheRatesAndTheirKnee) {
  // 10 us for each of the first 2 MiB that are touched, 40 for the others.
  std::vector<Point> points;
  for (size_t bytes = 256; bytes <= size_t{64} << 20; bytes *= 4) {
    const double mib = 2 * static_cast<double>(bytes) / (1 << 20);
    points.push_back({bytes, 10 * std::min(mib, 2.0) + 40 * std::max(mib - 2, 0.0)});
  }
  const plan::HostCost cost = fit_host_cost(Curve(points), 3);
  EXPECT_EQ(cost.meeting_us, 3);
  EXPECT_NEAR(cost.cached_us_per_mib, 10, 1e-6);
  EXPECT_NEAR(cost.memory_us_per_mib, 40, 1e-6);
  EXPECT_NEAR(cost.cached_mib, 2, 1e-6);
  EXPECT_EQ(fit_host_cost(Curve(), 1).memory_us_per_mib, 0);
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

plan::TuningTable table_of(const std::string& machine, std::vector<plan::HostEntry> host) {
  plan::TuningTable table;
  table.machine = machine;
  table.host = std::move(host);
  return table;
}

TEST_F(TuningFile, IsReadBackAsWritten) {
  const std::string path = folder_ / "some" / "folder" / "tuning.json";
  write_tuning(path, table_of("a machine", {{{2, 0, 512, 8 << 20}, {}}, {{8, 1, 65536, 1}, {}}}));
  const auto table = read_tuning(path, "a machine");
  ASSERT_TRUE(table.ok()) << table.status().message();
  ASSERT_EQ(table->host.size(), 2u);
  EXPECT_EQ(table->host[0].fit.ranks, 2u);
  EXPECT_EQ(table->host[1].fit.sleeps, 1u);
  // Nothing is left beside it.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_ / "some" / "folder"), {}), 1);
  EXPECT_FALSE(read_tuning(path, "another machine").ok());
  EXPECT_TRUE(read_tuning(folder_ / "none", "a machine").ok());
  EXPECT_THROW(write_tuning("/proc/no/tuning.json", {}), std::runtime_error);
}

TEST_F(TuningFile, SaysWhatIsInForce) {
  const std::string path = folder_ / "tuning.json";
  EXPECT_NE(describe_tuning("", "m").find("HOME"), std::string::npos);
  EXPECT_NE(describe_tuning(path, "m").find("no file"), std::string::npos);
  plan::TuningTable table = table_of("another", {{{2, 0, 512, 1}, {}}});
  table.gpu = "a GPU";
  table.device = {{4, {{plan::find_field("one_shot_max"), 4096}}, {}}};
  write_tuning(path, table);
  EXPECT_NE(describe_tuning(path, "m").find("another machine"), std::string::npos);
  const std::string text = describe_tuning(path, "another");
  EXPECT_NE(text.find("one-shot up to 512 B"), std::string::npos) << text;
  EXPECT_NE(text.find("a GPU, from 4 ranks: one_shot_max=4096"), std::string::npos) << text;
  std::ofstream(path) << "{\"version\": 1, \"machine\": \"m\", \"entries\": [{\"ranks\": 0}]}";
  EXPECT_NE(describe_tuning(path, "m").find("is ignored"), std::string::npos);
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
