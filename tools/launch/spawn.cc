#include "launch/spawn.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

extern char** environ;

namespace zbccl::tools {
namespace {

struct Pipe {
  Descriptor read;
  Descriptor write;
};

bool open_pipe(Pipe& pipe) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return false;
  pipe.read = Descriptor(ends[0]);
  pipe.write = Descriptor(ends[1]);
  return true;
}

std::vector<char*> pointers(const std::vector<std::string>& texts) {
  std::vector<char*> list;
  list.reserve(texts.size() + 1);
  for (const std::string& text : texts) list.push_back(const_cast<char*>(text.c_str()));
  list.push_back(nullptr);
  return list;
}

struct FreeCpuSet {
  void operator()(cpu_set_t* set) const { CPU_FREE(set); }
};

// All that the child needs, prepared before the fork: after it only async-signal-safe calls are
// made.
struct Child {
  const char* program;
  char* const* arguments;
  char* const* environment;
  const sigset_t* signals;
  const cpu_set_t* cpus;
  size_t cpus_bytes;
  pid_t parent;
  bool keep_stdin;
  int out;
  int err;
  int report;
};

enum Step : int { kNone, kBind, kExec, kStdin };
struct Failure {
  int step;
  int error;
};

[[noreturn]] void fail(const Child& child, Step step) {
  const Failure failure = {step, errno};
  (void)!write(child.report, &failure, sizeof failure);
  _exit(127);
}

[[noreturn]] void run_child(const Child& child) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != child.parent) _exit(127);  // it died before the line above
  if (!child.keep_stdin) {
    const int null = open("/dev/null", O_RDONLY);
    if (null < 0 || dup2(null, 0) < 0) fail(child, kStdin);
    if (null > 2) close(null);
  }
  if (child.out >= 0) dup2(child.out, 1);
  if (child.err >= 0) dup2(child.err, 2);
  if (child.cpus != nullptr && sched_setaffinity(0, child.cpus_bytes, child.cpus) != 0) {
    fail(child, kBind);
  }
  // What the launcher ignores would stay ignored in the program.
  signal(SIGPIPE, SIG_DFL);
  sigprocmask(SIG_SETMASK, child.signals, nullptr);
  execve(child.program, child.arguments, child.environment);
  fail(child, kExec);
}

const char* step_text(int step) {
  switch (step) {
    case kBind: return "bind to its core";
    case kStdin: return "open /dev/null";
    default: return "run the program";
  }
}

}  // namespace

Spawned spawn(const SpawnOptions& options) {
  Pipe out;
  Pipe err;
  Pipe report;
  if (!open_pipe(report) || (options.capture && (!open_pipe(out) || !open_pipe(err)))) {
    return {.error = errno, .what = "open pipes (more open files may be allowed by ulimit -n)"};
  }
  const std::vector<char*> arguments = pointers(options.arguments);
  const std::vector<char*> environment = pointers(options.environment);
  std::unique_ptr<cpu_set_t, FreeCpuSet> cpus;
  size_t cpus_bytes = 0;
  if (!options.cpus.empty()) {
    const int count = *std::max_element(options.cpus.begin(), options.cpus.end()) + 1;
    cpus.reset(CPU_ALLOC(count));
    cpus_bytes = CPU_ALLOC_SIZE(count);
    CPU_ZERO_S(cpus_bytes, cpus.get());
    for (const int cpu : options.cpus) CPU_SET_S(cpu, cpus_bytes, cpus.get());
  }
  const Child child = {options.program.c_str(),
                       arguments.data(),
                       environment.data(),
                       &options.signals,
                       cpus.get(),
                       cpus_bytes,
                       getpid(),
                       options.keep_stdin,
                       out.write.get(),
                       err.write.get(),
                       report.write.get()};
  const pid_t pid = fork();
  if (pid < 0) return {.error = errno, .what = "start a process"};
  if (pid == 0) run_child(child);
  setpgid(pid, pid);  // here too: signals may be sent to the group at once
  report.write.close();
  Failure failure = {kNone, 0};
  ssize_t bytes = 0;
  do {
    bytes = read(report.read.get(), &failure, sizeof failure);
  } while (bytes < 0 && errno == EINTR);
  if (bytes == static_cast<ssize_t>(sizeof failure)) {
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return {.error = failure.error, .what = step_text(failure.step)};
  }
  return {pid, std::move(out.read), std::move(err.read), 0, ""};
}

std::vector<std::string> own_environment() {
  std::vector<std::string> list;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    list.emplace_back(*entry);
  }
  return list;
}

}  // namespace zbccl::tools
