// What calibration measures on GPUs, and what it says about the plan's values. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "calibrate/fit.h"
#include "plan/cost.h"
#include "plan/tuning_file.h"

namespace zbccl::tools {

// One operation in bf16 by several ways, at the same sizes. What an algorithm cannot serve is
// missing from the end of its curve.
struct DeviceSweep {
  std::string operation;
  int max_blocks = 0;  // 0: the grid that the plan takes
  struct Way {
    std::string algorithm;  // or a form of one
    Curve times;  // by the size as `zbccl perf` has it; us of the slowest rank, the median
    Curve held;   // at sizes in between, which the fit does not see
  };
  std::vector<Way> ways;
};

// One call on grids of so many blocks: Point::bytes is their number.
struct GridSweep {
  std::string field;
  std::string operation;
  size_t bytes = 0;
  Curve times;
};

// Of one number of ranks.
struct DeviceMeasured {
  int ranks = 0;
  std::string gpu;
  std::vector<GridSweep> grids;
  std::vector<DeviceSweep> sweeps;
};
std::string to_json(const DeviceMeasured& measured);
// Throws nlohmann::json::exception for what to_json() did not write.
DeviceMeasured parse_device_measured(const std::string& text);

// The fewest blocks that lose nothing that measuring twice would not: multiprocessors that stay
// free are worth more.
uint64_t choose_blocks(const Curve& times);

// A value of the tuning and why it has it.
struct FittedValue {
  const plan::TuningField* field = nullptr;
  uint64_t value = 0;
  std::string why;
};
// The ways of an operation in the order in which the plan takes them by size, and what is between
// each of them and the next one.
struct FittedLadder {
  const DeviceSweep* sweep = nullptr;
  std::vector<FittedValue> values;
  std::vector<HeldOut> held;
};
// All that follows from what was measured; pointers are into it.
std::vector<FittedLadder> fit_ladders(const DeviceMeasured& measured);

// A fixed time and the time of a MiB, by least squares of the relative error; neither below zero.
plan::Line fit_line(const std::vector<std::pair<double, double>>& mib_and_us);
std::vector<plan::DeviceCost> fit_costs(const DeviceMeasured& measured);

}  // namespace zbccl::tools
