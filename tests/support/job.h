// Runs the ranks of a test: every rank a process, all ranks threads of one process, or both mixed.
//
// The calling process only forks and watches: it must not have touched the library, and the library
// is first used in the children. A child's failed expectations, exceptions, signals and exit code
// become failures of the calling test, and a job that outlasts its deadline is killed and reported
// with what every rank was doing.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "support/board.h"

namespace zbccl::test {

enum class Mode { kThreads, kProcesses, kMixed };
const char* mode_name(Mode mode);

// True in a build with ThreadSanitizer or AddressSanitizer.
bool sanitized();
bool thread_sanitized();

struct JobOptions {
  int ranks = 2;
  Mode mode = Mode::kProcesses;  // kMixed: two ranks a process
  std::chrono::seconds deadline{60};
  // Every rank starts after a pseudo-random delay below this.
  std::chrono::milliseconds max_start_delay{0};
  std::vector<std::pair<std::string, std::string>> env = {};
  // Ranks whose process is expected to end by SIGKILL.
  std::set<int> killed = {};
};

// One rank of a running job; used by that rank's thread only.
class Rank {
 public:
  Rank(const JobOptions& options, Board* board, int rank, int process)
      : options_(options), board_(board), rank_(rank), process_(process) {}

  int rank() const { return rank_; }
  int size() const { return options_.ranks; }
  Mode mode() const { return options_.mode; }
  int process() const { return process_; }
  Board& board() const { return *board_; }

  void note(const std::string& text) { board_->note(rank_, text.c_str()); }
  // Waits for the other ranks without the library; throws if they do not come.
  void meet() { meet(size()); }
  void meet(int count);
  // The same number on every rank, new with each call: ranks call it in the same order.
  int next_index() { return index_++; }

 private:
  const JobOptions& options_;
  Board* board_;
  int rank_;
  int process_;
  int index_ = 0;
};

using RankFunction = std::function<void(Rank&)>;

// Returns when every rank has ended; reports what failed through GoogleTest.
void run_job(const JobOptions& options, const RankFunction& function);
// The process that `rank` runs in, and how many processes there are.
int process_of(const JobOptions& options, int rank);
int num_processes(const JobOptions& options);

// How a job went, for tests of failures themselves.
struct ProcessResult {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  bool stuck = false;  // outlasted the deadline and was killed
  std::string output;  // what it wrote to standard output and standard error
};
std::vector<ProcessResult> run_job_raw(const JobOptions& options, const RankFunction& function,
                                       Board* board);

}  // namespace zbccl::test
