#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>

#include "doctor/checks.h"
#include "launch/descriptor.h"

namespace zbccl::tools {
namespace {

using Level = Finding::Level;

std::string reason() { return std::strerror(errno); }

// Runs `body` in a child and returns its exit code, -1 where there is no child.
int in_child(const std::function<int()>& body) {
  const pid_t pid = fork();
  if (pid == 0) _exit(body());
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status)) return -1;
  return WEXITSTATUS(status);
}

Finding check_memfd() {
  const Descriptor fd(memfd_create("zbccl-doctor", MFD_CLOEXEC));
  constexpr size_t kBytes = 4096;
  if (!fd.valid() || ftruncate(fd.get(), kBytes) != 0) {
    return {Level::kFail, "memfd",
            "memfd_create: " + reason() +
                "; allow that system call in the container's seccomp "
                "profile, and run on Linux 3.17 or newer"};
  }
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) return {Level::kFail, "memfd", "mapping one: " + reason()};
  auto* word = static_cast<volatile uint32_t*>(memory);
  const int code = in_child([word] {
    *word = 42;
    return 0;
  });
  const bool seen = code == 0 && *word == 42;
  munmap(memory, kBytes);
  if (!seen) return {Level::kFail, "memfd", "a child's store is not seen by its parent"};
  return {Level::kOk, "memfd", "shared between two processes"};
}

// A socket without a file, as ranks use to pass descriptors.
Finding check_unix_sockets() {
  const char* const subject = "Unix sockets";
  const Descriptor listening(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // Bound without a name, a socket gets a free one in the abstract namespace.
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  socklen_t size = sizeof(sa_family_t);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (!listening.valid() || bind(listening.get(), generic, size) != 0 ||
      listen(listening.get(), 1) != 0) {
    return {Level::kFail, subject,
            "the abstract namespace cannot be bound: " + reason() +
                "; run on Linux, and allow it "
                "in the container's security profile (AppArmor: unix)"};
  }
  size = sizeof address;
  getsockname(listening.get(), generic, &size);
  const int code = in_child([&] {
    const Descriptor connecting(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return connect(connecting.get(), generic, size) == 0 ? 0 : errno;
  });
  if (code != 0) {
    return {Level::kFail, subject, fmt::format("a child cannot connect: {}", std::strerror(code))};
  }
  return {Level::kOk, subject, "in the abstract namespace"};
}

// Two children, as two ranks are: one reads the other's memory. Returns 0 or what errno says.
int attach_between_siblings(bool permit) {
  int ready[2];
  int stay[2];
  if (pipe2(ready, O_CLOEXEC) != 0 || pipe2(stay, O_CLOEXEC) != 0) return errno;
  Descriptor ready_read(ready[0]);
  Descriptor ready_write(ready[1]);
  Descriptor stay_read(stay[0]);
  Descriptor stay_write(stay[1]);
  static volatile uint64_t secret = 0;
  const pid_t owner = fork();
  if (owner == 0) {
    stay_write.close();
    secret = 0x5eedU;
    if (permit) prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    char byte = 1;
    (void)!write(ready_write.get(), &byte, 1);
    (void)!read(stay_read.get(), &byte, 1);  // until the parent closes its end
    _exit(0);
  }
  if (owner < 0) return errno;
  ready_write.close();
  char byte = 0;
  (void)!read(ready_read.get(), &byte, 1);
  const int code = in_child([owner] {
    uint64_t seen = 0;
    const iovec here = {&seen, sizeof seen};
    const iovec there = {const_cast<uint64_t*>(&secret), sizeof secret};
    if (process_vm_readv(owner, &here, 1, &there, 1, 0) != sizeof seen) return errno;
    return seen == 0x5eedU ? 0 : EFAULT;
  });
  stay_write.close();
  waitpid(owner, nullptr, 0);
  return code;
}

std::string read_first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<Finding> check_attach() {
  const char* const subject = "cross-memory attach";
  const std::string scope = read_first_line("/proc/sys/kernel/yama/ptrace_scope");
  std::vector<Finding> findings;
  if (scope.empty()) {
    findings.push_back({Level::kOk, "ptrace_scope", "Yama is not in this kernel"});
  } else if (scope == "0") {
    findings.push_back({Level::kOk, "ptrace_scope", "0: processes of one user reach each other"});
  } else if (scope == "1") {
    findings.push_back(
        {Level::kOk, "ptrace_scope",
         "1: a process is reached only by those it permits; zbccl's ranks permit it"});
  } else {
    findings.push_back({Level::kWarn, "ptrace_scope",
                        scope + ": nobody is reached; as root: sysctl kernel.yama.ptrace_scope=1"});
  }
  const int plain = attach_between_siblings(false);
  const int permitted = plain == 0 ? 0 : attach_between_siblings(true);
  if (permitted == 0) {
    findings.push_back({Level::kOk, subject,
                        plain == 0 ? "unregistered memory is copied straight between processes"
                                   : "works for processes that permit it (PR_SET_PTRACER)"});
  } else {
    findings.push_back(
        {Level::kWarn, subject,
         fmt::format(
             "process_vm_readv: {}; unregistered memory will be staged. Run containers with "
             "--cap-add SYS_PTRACE (or a seccomp profile that allows process_vm_readv), and "
             "set ptrace_scope to 0 or 1; or use registered memory",
             permitted > 0 ? std::strerror(permitted) : "no process could be started")});
  }
  return findings;
}

Finding check_pidfd() {
#ifdef SYS_pidfd_open
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  const Descriptor fd(static_cast<int>(syscall(SYS_pidfd_open, child, 0)));
  const std::string why = reason();
  kill(child, SIGKILL);
  pollfd ended = {fd.get(), POLLIN, 0};
  const bool noticed = fd.valid() && poll(&ended, 1, 5000) == 1;
  waitpid(child, nullptr, 0);
  if (noticed) return {Level::kOk, "pidfd", "the death of a process is noticed at once"};
  return {Level::kWarn, "pidfd",
          (fd.valid() ? std::string("a death is not reported") : "pidfd_open: " + why) +
              "; deaths are noticed by the sockets instead. Linux 5.3 or newer has it; allow it in "
              "the container's seccomp profile"};
#else
  return {Level::kWarn, "pidfd", "this build has no pidfd_open; deaths are noticed by the sockets"};
#endif
}

}  // namespace

std::vector<Finding> check_system_calls() {
  std::vector<Finding> findings = {check_memfd(), check_unix_sockets()};
  for (Finding& finding : check_attach()) findings.push_back(std::move(finding));
  findings.push_back(check_pidfd());
  return findings;
}

}  // namespace zbccl::tools
