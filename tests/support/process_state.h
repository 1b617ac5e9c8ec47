// What this process holds, for tests that nothing is left behind, and forks of it.
#pragma once

#include <functional>
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

// Runs `body` in a forked child and expects no failure there, nor that it takes a minute. A child
// inherits the locks that other threads hold at the fork, those of a sanitizer's allocator among
// them, so this waits first until all other threads of this process sleep.
void in_child(const std::function<void()>& body);

}  // namespace zbccl::test
