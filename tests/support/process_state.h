// What this process holds, for tests that nothing is left behind.
#pragma once

#include <string>
#include <vector>

namespace zbccl::test {

int count_threads();
int count_descriptors();
int count_mappings();

struct ProcessState {
  int threads = 0;
  int descriptors = 0;
  int mappings = 0;
};
ProcessState process_state();

// Names in /dev/shm, sorted.
std::vector<std::string> shared_memory_files();
// What each open descriptor points at, for failure messages.
std::string describe_descriptors();

}  // namespace zbccl::test
