// The checks of `zbccl doctor`. Each tries the thing itself where that is possible. To be called
// while this process has one thread.
#pragma once

#include <string>
#include <vector>

namespace zbccl::tools {

struct Finding {
  enum class Level { kOk, kWarn, kFail };
  Level level;
  std::string subject;
  std::string text;  // what was found; for a warning or failure, also how to mend it
};

std::vector<Finding> check_software();      // this library, and what it can load
std::vector<Finding> check_system_calls();  // memory and descriptors shared between processes
std::vector<Finding> check_limits();        // of this user and container
std::vector<Finding> check_processor();     // cores, instructions, NUMA, pages
std::vector<Finding> check_job();           // two ranks that really reduce something
// The CUDA driver, each GPU, which GPUs reach which, NCCL, and ranks on GPUs that really reduce
// something. A failure is not one of the host device.
std::vector<Finding> check_gpus();
// Ranks on `gpus` GPUs, or two on one.
Finding check_gpu_job(int gpus);

}  // namespace zbccl::tools
