#include "support/job.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "support/process_state.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t kMaxReported = 6000;  // bytes of a child's output that a failure shows

struct Child {
  pid_t pid = -1;
  int pipe = -1;
  bool ended = false;
  ProcessResult result;
};

void run_rank(const JobOptions& options, const RankFunction& function, Board* board, int number,
              int process) {
  Rank rank(options, board, number, process);
  if (options.max_start_delay.count() > 0) {
    const auto spread = static_cast<uint64_t>(options.max_start_delay.count());
    const uint64_t delay = (static_cast<uint64_t>(number) + 1) * 0x9e3779b97f4a7c15ull >> 33;
    std::this_thread::sleep_for(milliseconds(delay % spread));
  }
  try {
    function(rank);
    board->set_done(number);
  } catch (const std::exception& error) {
    ADD_FAILURE() << "rank " << number << " threw: " << error.what();
  }
}

[[noreturn]] void child_main(const JobOptions& options, const RankFunction& function, Board* board,
                             int process, int pipe, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
  ::dup2(pipe, STDOUT_FILENO);
  ::dup2(pipe, STDERR_FILENO);
  ::close(pipe);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  for (const auto& [name, value] : options.env) ::setenv(name.c_str(), value.c_str(), 1);
  std::vector<int> mine;
  for (int rank = 0; rank < options.ranks; ++rank) {
    if (process_of(options, rank) == process) mine.push_back(rank);
  }
  if (mine.size() == 1) {
    run_rank(options, function, board, mine[0], process);
  } else {
    std::vector<std::thread> threads;
    for (int rank : mine) {
      threads.emplace_back([&, rank] { run_rank(options, function, board, rank, process); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  const int code = testing::Test::HasFailure() ? 1 : 0;
  std::fflush(nullptr);
  std::exit(code);  // runs the library's exit-time code too, as a real program does
}

Child start_child(const JobOptions& options, const RankFunction& function, Board* board,
                  int process, const std::vector<Child>& earlier) {
  int ends[2];
  if (::pipe(ends) != 0) throw std::runtime_error("pipe failed");
  std::fflush(nullptr);
  const pid_t parent = ::getpid();
  Child child;
  child.pid = ::fork();
  if (child.pid < 0) throw std::runtime_error("fork failed");
  if (child.pid == 0) {
    ::close(ends[0]);
    for (const Child& other : earlier) ::close(other.pipe);
    child_main(options, function, board, process, ends[1], parent);
  }
  ::close(ends[1]);
  ::fcntl(ends[0], F_SETFL, O_NONBLOCK);
  child.pipe = ends[0];
  return child;
}

void drain(Child& child) {
  char buffer[4096];
  for (ssize_t n; (n = ::read(child.pipe, buffer, sizeof buffer)) > 0;) {
    child.result.output.append(buffer, static_cast<size_t>(n));
  }
}

void reap(Child& child, bool block) {
  int status = 0;
  if (child.ended || ::waitpid(child.pid, &status, block ? 0 : WNOHANG) != child.pid) return;
  child.ended = true;
  if (WIFEXITED(status)) child.result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) child.result.signal = WTERMSIG(status);
}

// What every thread of a stuck process is waiting in.
std::string describe_threads(pid_t pid) {
  std::ostringstream text;
  const std::string directory = "/proc/" + std::to_string(pid) + "/task";
  DIR* tasks = ::opendir(directory.c_str());
  if (tasks == nullptr) return {};
  while (const dirent* entry = ::readdir(tasks)) {
    if (entry->d_name[0] == '.') continue;
    std::string name;
    std::string wait;
    std::string call;
    std::ifstream(directory + "/" + entry->d_name + "/comm") >> name;
    std::ifstream(directory + "/" + entry->d_name + "/wchan") >> wait;
    std::ifstream(directory + "/" + entry->d_name + "/syscall") >> call;
    text << "  thread " << entry->d_name << " " << name << ": system call " << call << " " << wait
         << "\n";
  }
  ::closedir(tasks);
  return text.str();
}

void watch(std::vector<Child>& children, milliseconds limit) {
  const auto end = steady_clock::now() + limit;
  std::vector<pollfd> polls(children.size());
  for (bool running = true; running;) {
    for (size_t i = 0; i < children.size(); ++i) {
      polls[i] = {children[i].ended ? -1 : children[i].pipe, POLLIN, 0};
    }
    // A closed pipe polls ready until its process is reaped; the pause keeps that from spinning.
    ::poll(polls.data(), polls.size(), 20);
    std::this_thread::sleep_for(milliseconds(1));
    running = false;
    for (Child& child : children) {
      reap(child, false);
      drain(child);
      running = running || !child.ended;
    }
    if (!running || steady_clock::now() < end) continue;
    for (Child& child : children) {
      if (child.ended) continue;
      child.result.stuck = true;
      child.result.output += "stuck:\n" + describe_threads(child.pid);
    }
    for (Child& child : children) {
      if (!child.ended) ::kill(child.pid, SIGKILL);
    }
    for (Child& child : children) {
      reap(child, true);
      drain(child);
    }
    running = false;
  }
  for (Child& child : children) ::close(child.pipe);
}

std::string last_part(const std::string& text) {
  if (text.size() <= kMaxReported) return text;
  return text.substr(0, kMaxReported / 2) + "\n[...]\n" +
         text.substr(text.size() - kMaxReported / 2);
}

}  // namespace

const char* mode_name(Mode mode) {
  switch (mode) {
    case Mode::kThreads: return "threads";
    case Mode::kProcesses: return "processes";
    case Mode::kMixed: return "mixed";
  }
  return "unknown";
}

bool thread_sanitized() {
#if defined(__SANITIZE_THREAD__)
  return true;
#else
  return false;
#endif
}

bool sanitized() {
#if defined(__SANITIZE_ADDRESS__)
  return true;
#else
  return thread_sanitized();
#endif
}

void Rank::meet(int count) {
  if (!board_->meet(count, std::chrono::seconds(sanitized() ? 120 : 30))) {
    throw std::runtime_error("the other ranks did not come to the meeting");
  }
}

int process_of(const JobOptions& options, int rank) {
  switch (options.mode) {
    case Mode::kThreads: return 0;
    case Mode::kProcesses: return rank;
    case Mode::kMixed: return rank / 2;
  }
  return 0;
}

int num_processes(const JobOptions& options) {
  return options.ranks == 0 ? 0 : process_of(options, options.ranks - 1) + 1;
}

std::vector<ProcessResult> run_job_raw(const JobOptions& options, const RankFunction& function,
                                       Board* board) {
  // A fork takes only the calling thread along; locks that others hold would stay locked.
  if (!thread_sanitized() && count_threads() != 1) {
    ADD_FAILURE() << "a job must be started before any thread";
  }
  std::vector<Child> children;
  for (int process = 0; process < num_processes(options); ++process) {
    children.push_back(start_child(options, function, board, process, children));
  }
  watch(children, options.deadline * (sanitized() ? 5 : 1));
  std::vector<ProcessResult> results;
  for (Child& child : children) results.push_back(std::move(child.result));
  return results;
}

void run_job(const JobOptions& options, const RankFunction& function) {
  Board* board = Board::create();
  const std::vector<ProcessResult> results = run_job_raw(options, function, board);
  bool failed = false;
  for (size_t i = 0; i < results.size(); ++i) {
    const ProcessResult& result = results[i];
    const bool expect_kill = options.killed.count(static_cast<int>(i)) != 0;
    if (expect_kill ? result.signal == SIGKILL && !result.stuck : result.exit_code == 0) continue;
    failed = true;
    ADD_FAILURE() << "process " << i << " of " << results.size() << " (" << options.ranks
                  << " ranks, " << mode_name(options.mode) << ") "
                  << (result.stuck ? "was stuck"
                      : result.exit_code >= 0
                          ? "ended with code " + std::to_string(result.exit_code)
                          : "ended by signal " + std::to_string(result.signal))
                  << "; its output:\n"
                  << last_part(result.output);
  }
  if (failed) {
    for (int rank = 0; rank < options.ranks; ++rank) {
      if (!board->done(rank) && board->note_of(rank)[0] != '\0') {
        ADD_FAILURE() << "rank " << rank << " was last at: " << board->note_of(rank);
      }
    }
  }
  if (std::getenv("ZBCCL_TEST_VERBOSE") != nullptr) {
    for (const ProcessResult& result : results) std::fputs(result.output.c_str(), stdout);
  }
  Board::destroy(board);
}

}  // namespace zbccl::test
