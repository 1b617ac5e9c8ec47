#include "launch/guardian.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

namespace zbccl::tools {
namespace {

// Until the launcher's end of the pipe closes: a positive number adds a group, a negative one takes
// it away.
[[noreturn]] void guard(int line) {
  setpgid(0, 0);
  prctl(PR_SET_NAME, "zbccl-guardian");
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, nullptr);
  // Holds neither the terminal nor a pipe that somebody reads to its end.
  const int null = open("/dev/null", O_RDWR);
  for (int fd = 0; fd <= 2; ++fd) dup2(null, fd);
  std::vector<pid_t> groups;
  pid_t message = 0;
  for (;;) {
    const ssize_t bytes = read(line, &message, sizeof message);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes != static_cast<ssize_t>(sizeof message)) break;
    if (message > 0) groups.push_back(message);
    std::erase(groups, -message);
  }
  for (const pid_t group : groups) kill(-group, SIGKILL);
  _exit(0);
}

}  // namespace

Guardian::Guardian() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
  Descriptor reading(ends[0]);
  line_ = Descriptor(ends[1]);
  pid_ = fork();
  if (pid_ < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (pid_ == 0) {
    line_.close();
    guard(reading.get());
  }
}

Guardian::~Guardian() {
  line_.close();
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void Guardian::watch(pid_t group) { send(group); }

void Guardian::forget(pid_t group) { send(-group); }

void Guardian::send(pid_t message) const {
  // As small a write is whole or fails; a guardian that is gone cannot be told anything.
  if (write(line_.get(), &message, sizeof message) < 0) return;
}

}  // namespace zbccl::tools
