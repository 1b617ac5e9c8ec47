// One of the launcher's own outputs, written without ever blocking the launcher. One thread.
#pragma once

#include <string>

namespace zbccl::tools {

class Output {
 public:
  explicit Output(int fd) : fd_(fd) {}

  int fd() const { return fd_; }
  std::string& queue() { return queue_; }
  bool waiting() const { return !queue_.empty() && !broken_; }
  // Nobody reads it any more; what is queued is dropped.
  bool broken() const { return broken_; }
  // Too much is queued to read on.
  bool full() const { return queue_.size() >= kFull; }
  // Writes what the reader takes at once. The descriptor's flags are left alone: it is shared with
  // other programs.
  void write_some();

 private:
  static constexpr size_t kFull = size_t{1} << 20;

  int fd_;
  std::string queue_;
  bool broken_ = false;
};

// True where both descriptors lead to the same file, terminal or pipe.
bool same_place(int a, int b);

}  // namespace zbccl::tools
