// What of the sharing of GPU memory works: the checks of `zbccl doctor` that use the CUDA driver,
// in the process that may. One thread.
#pragma once

#include <string>
#include <vector>

#include "doctor/checks.h"

namespace zbccl::tools {

// Chunks that peers map, IPC for memory of other allocators, and multicast, which stays unused.
std::vector<Finding> check_gpu_sharing(int gpus);

// Each GPU writes to and reads from each other one's memory, where the driver allows it; with what
// becomes of those that do not.
Finding check_gpu_reach(int gpus);

}  // namespace zbccl::tools
