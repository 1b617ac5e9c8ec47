// Who this process is, by the variables that launchers set. Reads the environment; any thread.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"

namespace zbccl::bootstrap {

enum class Launcher { kZbccl, kTorchrun, kSlurm, kOpenMpi, kMpich };

const char* launcher_name(Launcher launcher);

struct Placement {
  Launcher launcher = Launcher::kZbccl;
  int rank = 0;
  int nranks = 1;
  int local_rank = -1;         // -1: unknown
  bool one_machine = true;     // as far as the launcher says
  std::string job;             // names this job on its machine
  bool job_is_global = false;  // and on every other machine of the job
};

// The first launcher, in the order of the enumeration, whose variables are set; nothing if none
// is. A set that is incomplete, or a number that is none or out of range, is kInvalidUsage.
Result<std::optional<Placement>> find_placement();

// The value of a variable; nothing if it is unset or empty.
std::optional<std::string> variable(const char* name);
// A TCP port.
Result<uint16_t> port_variable(const char* name);

}  // namespace zbccl::bootstrap
