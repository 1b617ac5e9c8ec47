#include "launch/descendants.h"

#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

namespace zbccl::tools {
namespace {

// From /proc: waiting for any child would also reap the ranks.
std::vector<pid_t> other_children(const std::vector<pid_t>& expected) {
  std::vector<pid_t> children;
  std::error_code ignored;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", ignored)) {
    std::ifstream list(task.path() / "children");
    for (pid_t child = 0; list >> child;) {
      if (std::find(expected.begin(), expected.end(), child) == expected.end()) {
        children.push_back(child);
      }
    }
  }
  return children;
}

}  // namespace

bool has_other_children(const std::vector<pid_t>& expected) {
  const std::vector<pid_t> children = other_children(expected);
  for (const pid_t child : children) waitpid(child, nullptr, WNOHANG);
  return !children.empty();
}

void end_other_children(const std::vector<pid_t>& expected) {
  // A process in an uninterruptible system call may outlast this; it is then init's.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (std::chrono::steady_clock::now() < end) {
    const std::vector<pid_t> children = other_children(expected);
    if (children.empty()) return;
    for (const pid_t child : children) {
      kill(child, SIGKILL);
      waitpid(child, nullptr, WNOHANG);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace zbccl::tools
