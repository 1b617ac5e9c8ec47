#include "launch/output.h"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

namespace zbccl::tools {

void Output::write_some() {
  size_t done = 0;
  while (done < queue_.size() && !broken_) {
    pollfd ready = {fd_, POLLOUT, 0};
    if (poll(&ready, 1, 0) <= 0 || ready.revents == 0) break;
    // A pipe that is ready has room for PIPE_BUF bytes: such a write does not block.
    const size_t size = std::min(queue_.size() - done, static_cast<size_t>(PIPE_BUF));
    const ssize_t written = write(fd_, queue_.data() + done, size);
    if (written > 0) {
      done += static_cast<size_t>(written);
    } else if (errno == EAGAIN) {
      break;
    } else if (errno != EINTR) {
      broken_ = true;
    }
  }
  queue_.erase(0, done);
  if (broken_) queue_.clear();
}

bool same_place(int a, int b) {
  struct stat first {};
  struct stat second {};
  return fstat(a, &first) == 0 && fstat(b, &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

}  // namespace zbccl::tools
