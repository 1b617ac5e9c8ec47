#include "topology/machine_key.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string_view>

#include "base/format.h"

namespace zbccl::topology {
namespace {

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(" \t") - begin + 1));
}

// The value of the first line that begins with `name` and a colon.
std::string value_of(const std::string& text, std::string_view name) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(':');
    if (colon != std::string::npos && trimmed(line.substr(0, colon)) == name) {
      return trimmed(std::string_view(line).substr(colon + 1));
    }
  }
  return {};
}

}  // namespace

std::string machine_key(const std::string& cpuinfo, long processors, const std::string& kernel) {
  std::string model;
  // x86, then what several ARM kernels write.
  for (const char* name : {"model name", "Model", "CPU part"}) {
    if (model.empty()) model = value_of(cpuinfo, name);
  }
  if (model.empty()) model = "unknown processor";
  return zbccl::format("{}, {} processors, Linux {}", model, processors, kernel);
}

std::string machine_key() {
  std::ifstream file("/proc/cpuinfo");
  std::ostringstream cpuinfo;
  cpuinfo << file.rdbuf();
  utsname system = {};
  const bool known = uname(&system) == 0;
  return machine_key(cpuinfo.str(), sysconf(_SC_NPROCESSORS_ONLN),
                     known ? std::string(system.release) : std::string("unknown"));
}

}  // namespace zbccl::topology
