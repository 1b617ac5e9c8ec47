// The harness itself: what goes wrong in a rank must fail the test that started it.
#include "support/job.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <stdexcept>
#include <thread>

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::vector<ProcessResult> run_raw(const JobOptions& options, const RankFunction& function) {
  Board* board = Board::create();
  auto results = run_job_raw(options, function, board);
  Board::destroy(board);
  return results;
}

class Modes : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Job, Modes,
                         testing::Values(Mode::kThreads, Mode::kProcesses, Mode::kMixed),
                         [](const auto& test) { return mode_name(test.param); });

TEST_P(Modes, RanksMeetAndShareTheBoard) {
  const JobOptions options{
      .ranks = 5, .mode = GetParam(), .max_start_delay = milliseconds(20), .env = {{"JOB", "x"}}};
  run_job(options, [](Rank& rank) {
    EXPECT_STREQ("x", std::getenv("JOB"));
    for (int round = 0; round < 3; ++round) {
      rank.board().publish(rank.rank(), round, static_cast<uint64_t>(rank.rank() + 10 * round));
      rank.meet();
      for (int r = 0; r < rank.size(); ++r) {
        EXPECT_EQ(static_cast<uint64_t>(r + 10 * round), rank.board().value(r, round));
      }
      rank.meet();
    }
  });
}

TEST_P(Modes, PlacesRanksInProcesses) {
  const JobOptions options{.ranks = 5, .mode = GetParam()};
  EXPECT_EQ(GetParam() == Mode::kThreads ? 1
            : GetParam() == Mode::kMixed ? 3
                                         : 5,
            num_processes(options));
  run_job(options, [](Rank& rank) {
    rank.board().publish(rank.rank(), 0, static_cast<uint64_t>(::getpid()));
    rank.meet();
    const bool same = rank.board().value(0, 0) == rank.board().value(rank.rank(), 0);
    EXPECT_EQ(rank.process() == 0, same);
  });
}

TEST(Job, ReportsAFailedExpectation) {
  const auto results =
      run_raw({.ranks = 2}, [](Rank& rank) { EXPECT_EQ(0, rank.rank()) << "HERE"; });
  EXPECT_EQ(0, results[0].exit_code);
  EXPECT_EQ(1, results[1].exit_code);
  EXPECT_NE(std::string::npos, results[1].output.find("HERE")) << results[1].output;
}

TEST(Job, ReportsAnException) {
  const auto results = run_raw({.ranks = 1}, [](Rank&) { throw std::runtime_error("BROKEN"); });
  EXPECT_EQ(1, results[0].exit_code);
  EXPECT_NE(std::string::npos, results[0].output.find("BROKEN"));
}

TEST(Job, ReportsASignal) {
  const auto results = run_raw({.ranks = 2}, [](Rank& rank) {
    if (rank.rank() == 1) ::raise(SIGKILL);
  });
  EXPECT_EQ(0, results[0].exit_code);
  EXPECT_EQ(SIGKILL, results[1].signal);
}

TEST(Job, KillsAndReportsStuckRanks) {
  const auto results = run_raw({.ranks = 2, .deadline = seconds(1)}, [](Rank& rank) {
    if (rank.rank() == 1) std::this_thread::sleep_for(seconds(300));
  });
  EXPECT_FALSE(results[0].stuck);
  EXPECT_TRUE(results[1].stuck);
  EXPECT_NE(std::string::npos, results[1].output.find("thread")) << results[1].output;
}

TEST(Job, FailsTheTestThatStartedIt) {
  EXPECT_NONFATAL_FAILURE(run_job({.ranks = 1}, [](Rank&) { std::_Exit(3); }), "code 3");
}

}  // namespace
}  // namespace zbccl::test
