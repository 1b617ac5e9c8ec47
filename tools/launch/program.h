// Finds the program that a user named. Any thread.
#pragma once

#include <string>
#include <vector>

namespace zbccl::tools {

// Absolute path of this command.
std::string own_path();

struct Program {
  std::string path;   // empty where nothing can be run
  int exit_code = 0;  // then 127: not found, 126: found and not executable, as shells have it
  std::string error;  // and why
};

// A name with a slash is a path; another one is looked up in PATH, then beside this command.
Program find_program(const std::string& name);

}  // namespace zbccl::tools
