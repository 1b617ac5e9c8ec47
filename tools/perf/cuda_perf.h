// `zbccl perf --device cuda`: the ranks, each with a GPU. A command built without CUDA has the same
// functions, which refuse.
#pragma once

#include "perf/options.h"

namespace zbccl::tools {

// Sets what the ranks read from the environment: ZBCCL_ALGORITHM, and switches that keep NCCL,
// PyTorch and NVSHMEM off NVLink multicast. Before anything is loaded and any thread exists.
void set_cuda_environment(const PerfArguments& arguments);

// At least 1. Throws UsageError where no GPU can be used, or what is to be compared cannot be
// loaded. Asked in a process of its own: this one stays without the driver and its threads.
int count_gpus(const PerfArguments& arguments);

// This process is one rank of a job that a launcher started. Returns the exit code.
int run_cuda_rank(const PerfArguments& arguments);

// All ranks are threads of this process. Returns the exit code.
int run_cuda_threads(const PerfOptions& options, int ranks);

}  // namespace zbccl::tools
