// Finds out what the machine is made of, by hwloc. Any thread.
#pragma once

#include <string>

#include "base/status.h"
#include "topology/machine.h"

namespace zbccl::topology {

// This machine, without the processors that its control group forbids. kUnsupported where libhwloc
// cannot be loaded.
Result<Machine> detect();

// A machine described in hwloc's synthetic notation, e.g. "package:2 l3:1 core:4 pu:2".
Result<Machine> synthetic(const std::string& description);

// The version of libhwloc in use, e.g. "2.9".
Result<std::string> hwloc_version();

}  // namespace zbccl::topology
