// The jobs of `zbccl topo calibrate`: ranks of this command that measure, and what rank 0 of them
// found out. To be called while this process has one thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace zbccl::tools {

// Starts `ranks` processes of `zbccl topo calibrate` with these options and gives what rank 0 wrote
// in run_measuring_rank(). Throws std::runtime_error.
std::string run_measuring_job(int ranks, const std::vector<std::string>& options);

// The part of one of those ranks. `work` gets a folder for this rank's files; what it returns on
// rank 0 is the job's result. Returns the exit code.
int run_measuring_rank(const std::string& folder,
                       const std::function<std::string(const std::string& folder)>& work);

}  // namespace zbccl::tools
