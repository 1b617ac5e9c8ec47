// The tuning file: thresholds and times that `zbccl topo calibrate` found on one machine, for
// communicators of so many ranks and more, up to the next entry. Where it lies, and its text. Any
// thread.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "plan/cost.h"
#include "plan/device_plan.h"
#include "plan/plan.h"

namespace zbccl::plan {

struct HostEntry {
  Fit fit;
  std::optional<HostCost> cost;
};

struct DeviceEntry {
  int ranks = 0;
  std::vector<std::pair<const TuningField*, uint64_t>> values;
  std::vector<DeviceCost> costs;
};

struct TuningTable {
  std::string machine;  // what topology::machine_key() says there
  std::vector<HostEntry> host;
  std::string gpu;  // the model that `device` was measured on; "": none was
  std::vector<DeviceEntry> device;
};

// `named`, what ZBCCL_TUNING_FILE says, else tuning.json in $XDG_CACHE_HOME/zbccl or
// ~/.cache/zbccl. "" where it says none, or none of them is known.
std::string tuning_path(const std::string& named);

// The message goes on from "FILE is ignored: ". Longer texts than kMostTuningBytes are not read.
inline constexpr size_t kMostTuningBytes = 256 << 10;
Result<TuningTable> parse_tuning(const std::string& text);
std::string to_json(const TuningTable& table);

// The same message where the table was measured elsewhere.
Status check_machine(const TuningTable& table, const std::string& machine);
Status check_gpu(const TuningTable& table, const std::string& gpu);

// The entry for a communicator of `nranks` ranks (that wait in such a way), or null.
const HostEntry* host_entry(const TuningTable& table, int nranks, bool spin);
const DeviceEntry* device_entry(const TuningTable& table, int nranks);
void apply(const DeviceEntry& entry, DeviceTuning* tuning);

}  // namespace zbccl::plan
