// `zbccl topo calibrate`: measures this machine and writes the thresholds that the library takes.
#pragma once

#include <string>
#include <vector>

namespace zbccl::tools {

struct CalibrateOptions {
  std::string device = "host";
  std::vector<int>
      ranks;  // empty: 2, 4, 8 and the powers of two up to the number of cores, or GPUs
  bool steady = false;
  double seconds = 0;  // 0: 0.05 on the host, 0.02 on GPUs
  std::string output;  // empty: where the library looks
  bool dry_run = false;
  std::string json_path;    // everything measured, too
  std::string rank_folder;  // set for the ranks that the command starts itself
};

// Returns the exit code.
int calibrate(const CalibrateOptions& options);

}  // namespace zbccl::tools
