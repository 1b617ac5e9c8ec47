// How long calls are likely to take: what `zbccl explain` compares the ways to do a call by. No
// choice depends on it. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "plan/device_plan.h"
#include "plan/plan.h"

namespace zbccl::plan {

// ---- device memory: a line for each algorithm, over the bytes of its busiest rank

struct Line {
  double fixed_us = 0;
  double us_per_mib = 0;  // of traffic()
};
struct DeviceCost {
  Operation operation = Operation::kNone;
  DeviceAlgorithm algorithm = DeviceAlgorithm::kNone;
  Line line;
};

// Bytes that go over the link to the rank that gets most, or from the one that sends most. Epochs
// beside the data count.
uint64_t traffic(DeviceAlgorithm algorithm, const DeviceCall& call);
// Bytes left in a rank's landing memory, the most of all ranks.
uint64_t landing(DeviceAlgorithm algorithm, const DeviceCall& call);

// From what was measured on this machine, else from what was measured on 2 and 4 H200; nothing
// where neither has it.
std::optional<double> predict(DeviceAlgorithm algorithm, const DeviceCall& call,
                              std::span<const DeviceCost> measured);
// The operation whose line serves `operation` too: they move data in the same way.
Operation measured_as(Operation operation);

// ---- host memory: meetings, and bytes that a rank reads and writes

struct HostCost {
  double call_us = 0;
  double meeting_us = 0;
  // Of bytes read and written, while all ranks do so: the first `cached_mib` and the others.
  double cached_us_per_mib = 0;
  double memory_us_per_mib = 0;
  double cached_mib = 0;
};
// What a virtual machine of two cores gave, whose ranks have so many cores here.
HostCost usual_host_cost(int nranks, int cores, bool spin);

struct HostCall {
  Operation operation = Operation::kNone;
  uint64_t bytes = 0;  // the larger of what a rank gives and gets
  int nranks = 1;
};
int meetings(Algorithm algorithm);
uint64_t touched(Algorithm algorithm, const HostCall& call);  // read and written by the busiest
// Nothing where computing is what takes time: operations on codes.
std::optional<double> predict(Algorithm algorithm, const HostCall& call, const HostCost& cost);

}  // namespace zbccl::plan
