// The library's registry of environment variables. Any thread.
#pragma once

#include <string>

namespace zbccl::tools {

// All of them, as a JSON array. Throws zbccl::Error.
std::string registry_text();

// The value in force of one of them, and whether the environment has set it.
struct Setting {
  std::string value;
  bool set = false;
};
Setting setting(const std::string& name);

}  // namespace zbccl::tools
