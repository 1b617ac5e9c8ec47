// What `zbccl topo calibrate` found on this machine. Any thread.
#pragma once

#include <array>

#include "plan/tuning_file.h"

namespace zbccl::comm {

// What the tuning file (plan/tuning_file.h) holds. Empty without a file, and, with one warning,
// where it is malformed or of another machine.
plan::TuningTable read_tuning();

using Fits = std::array<plan::Fit, plan::kMaxFits>;
Fits host_fits(const plan::TuningTable& table);

}  // namespace zbccl::comm
