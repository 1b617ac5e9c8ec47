// What callers and the environment ask for.
#pragma once

#include <chrono>
#include <string>

#include "types.h"

namespace zbccl::nccl {

// Of one communicator. Those that it makes later inherit them.
struct Settings {
  bool blocking = true;
  int max_blocks = 0;  // 0: zbccl decides
};

// Reads `config`, which may be null and may be of another version; what it leaves open stays as it
// is in `settings`.
ncclResult_t read_config(const ncclConfig_t* config, Settings* settings);

// The value of a ZBCCL_* variable that is in zbccl's registry, or its default.
std::string variable(const char* name);
// The deadline of whatever makes communicators (ZBCCL_INIT_TIMEOUT).
std::chrono::milliseconds init_timeout();

}  // namespace zbccl::nccl
