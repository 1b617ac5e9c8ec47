// The thresholds that `zbccl topo calibrate` found on this machine. Any thread.
#pragma once

#include <array>
#include <string>

#include "base/status.h"
#include "plan/plan.h"

namespace zbccl::comm {

using Fits = std::array<plan::Fit, plan::kMaxFits>;

// What the tuning file holds: ZBCCL_TUNING_FILE, else tuning.json in $XDG_CACHE_HOME/zbccl or
// ~/.cache/zbccl. Empty without a file, and, with one warning, where it is malformed or of another
// machine.
Fits read_fits();

// The text of such a file, which must have been measured on `machine`.
Result<Fits> parse_fits(const std::string& text, const std::string& machine);

}  // namespace zbccl::comm
