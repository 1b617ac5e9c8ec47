// Starts one rank.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <string>
#include <vector>

#include "launch/descriptor.h"

namespace zbccl::tools {

struct SpawnOptions {
  std::string program;
  std::vector<std::string> arguments;
  std::vector<std::string> environment;  // NAME=value
  sigset_t signals;                      // the mask that the program starts with
  std::vector<int> cpus;                 // empty: not bound
  bool keep_stdin = false;               // else it reads /dev/null
  bool capture = true;                   // stdout and stderr go to pipes
};

struct Spawned {
  pid_t pid = -1;  // also its process group
  Descriptor out;  // where captured
  Descriptor err;
  int error = 0;     // errno of what failed; then there is no process
  const char* what;  // and what it was
};

// The process dies with the thread that called this. Safe in a process with several threads.
Spawned spawn(const SpawnOptions& options);

// This process's environment as a list of NAME=value.
std::vector<std::string> own_environment();

}  // namespace zbccl::tools
