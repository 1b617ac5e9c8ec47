#include "support/process_state.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <thread>

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

bool others_sleep() {
  const std::string self = std::to_string(::gettid());
  for (const std::string& thread : list("/proc/self/task")) {
    if (thread == self) continue;
    std::ifstream file("/proc/self/task/" + thread + "/stat");
    std::string stat;
    std::getline(file, stat);
    // The state follows the name, which is in parentheses and may hold anything.
    const size_t name_end = stat.rfind(')');
    if (name_end + 2 < stat.size() && stat[name_end + 2] != 'S') return false;
  }
  return true;
}

void wait_until_others_sleep() {
  constexpr int kLooks = 5;  // in a row: between two pieces of work a thread sleeps as well
  int looks = 0;
  for (int i = 0; i < 5000 && looks < kLooks; ++i) {
    looks = others_sleep() ? looks + 1 : 0;
    if (looks < kLooks) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
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

void in_child(const std::function<void()>& body) {
  std::fflush(nullptr);
  wait_until_others_sleep();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::alarm(60);  // a child that hangs is a failure, not a lost process
    body();
    std::fflush(nullptr);
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(child, ::waitpid(child, &status, 0));
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
}

}  // namespace zbccl::test
