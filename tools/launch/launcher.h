// Starts the ranks of a job on this machine and looks after them until the last one has ended.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace zbccl::tools {

struct Job {
  std::string caller;                  // "zbccl run", for messages
  std::string program;                 // path
  std::vector<std::string> arguments;  // argument 0 included
  int ranks = 1;
  bool prefix = true;  // "[rank] " before each line; without, ranks write to our outputs directly
  std::chrono::milliseconds grace{5000};  // for the others after a rank has failed
  std::vector<std::vector<int>> cpus;     // for each rank the processors it is bound to; empty: not
};

// Returns the exit code: that of the first rank that failed (128 + signal where a signal ended it),
// else 0. The ranks meet by ZBCCL_RANK, ZBCCL_WORLD_SIZE, ZBCCL_LOCAL_RANK and ZBCCL_UNIQUE_ID.
//
// SIGINT, SIGTERM and SIGHUP go on to every rank; the third one kills. No process of the job is
// left behind, whichever way this one ends. To be called while this process has one thread.
int launch(const Job& job);

}  // namespace zbccl::tools
