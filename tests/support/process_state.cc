#include "support/process_state.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace zbccl::test {
namespace {

std::vector<std::string> list(const char* directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

int count_threads() { return static_cast<int>(list("/proc/self/task").size()); }

// One less: the directory itself is open while it is read.
int count_descriptors() { return static_cast<int>(list("/proc/self/fd").size()) - 1; }

int count_mappings() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) ++count;
  return count;
}

ProcessState process_state() { return {count_threads(), count_descriptors(), count_mappings()}; }

std::vector<std::string> shared_memory_files() { return list("/dev/shm"); }

std::string describe_descriptors() {
  std::string text;
  for (const std::string& name : list("/proc/self/fd")) {
    std::error_code error;
    const auto target = std::filesystem::read_symlink("/proc/self/fd/" + name, error);
    if (!error) text += name + " -> " + target.string() + "\n";
  }
  return text;
}

}  // namespace zbccl::test
