// The same bits everywhere: across algorithms, runs, threads and processes, kinds of memory and
// placement; special values by the rules of docs/numerics.md.
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "multirank/collective_case.h"
#include "support/connect.h"

namespace zbccl::test {
namespace {

using std::chrono::seconds;

class Ranks : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Numerics, Ranks, testing::Values(2, 3, 5, 8));

std::vector<Case> float_sums() {
  std::vector<Case> cases;
  for (zbcclDataType_t type : {zbcclFloat32, zbcclBfloat16, zbcclFloat16, zbcclFloat64}) {
    for (size_t count : {1, 255, 5003, 70001}) {
      for (zbcclRedOp_t op : {zbcclSum, zbcclAvg}) {
        cases.push_back({.type = type, .op = op, .count = count});
      }
    }
  }
  return cases;
}

// The hash that rank 0 saw over all cases of one run. Every rank must have seen the same.
uint64_t hash_of_run(JobOptions options, std::vector<Case> cases, std::string* algorithms) {
  Board* board = Board::create();
  const auto results = run_job_raw(
      options,
      [&](Rank& rank) {
        Communicator comm = connect(rank);
        CaseRunner runner(rank, comm, 4);
        std::set<std::string> used;
        for (const Case& test : cases) {
          runner.run(test);
          used.insert(comm.last_algorithm());
        }
        rank.board().publish(rank.rank(), 0, runner.hash());
        std::string names;
        for (const std::string& name : used) names += name + " ";
        if (rank.rank() == 0) rank.board().put_blob(kNumBlobs - 1, names.c_str(), names.size() + 1);
        comm.destroy();
      },
      board);
  for (const ProcessResult& result : results) EXPECT_EQ(0, result.exit_code) << result.output;
  for (int rank = 1; rank < options.ranks; ++rank) {
    EXPECT_EQ(board->value(0, 0), board->value(rank, 0)) << "rank " << rank << " saw other bits";
  }
  char names[kBlobBytes] = "";
  board->get_blob(kNumBlobs - 1, names, sizeof names, std::chrono::milliseconds(0));
  if (algorithms != nullptr) *algorithms = names;
  const uint64_t hash = board->value(0, 0);
  EXPECT_NE(0u, hash);
  Board::destroy(board);
  return hash;
}

TEST_P(Ranks, SameBitsInEveryAlgorithm) {
  std::string chosen;
  std::string one_shot;
  std::string two_shot;
  JobOptions options{.ranks = GetParam()};
  const uint64_t first = hash_of_run(options, float_sums(), &chosen);
  options.env = {{"ZBCCL_ONE_SHOT_MAX", "1G"}};
  EXPECT_EQ(first, hash_of_run(options, float_sums(), &one_shot));
  options.env = {{"ZBCCL_ONE_SHOT_MAX", "1"}};
  EXPECT_EQ(first, hash_of_run(options, float_sums(), &two_shot));
  EXPECT_NE(std::string::npos, one_shot.find("one_shot")) << one_shot;
  EXPECT_NE(std::string::npos, two_shot.find("two_shot")) << two_shot;
  EXPECT_EQ(std::string::npos, two_shot.find("one_shot")) << two_shot;
}

TEST_P(Ranks, SameBitsInEveryRunAndMode) {
  JobOptions options{.ranks = GetParam()};
  const uint64_t first = hash_of_run(options, float_sums(), nullptr);
  EXPECT_EQ(first, hash_of_run(options, float_sums(), nullptr));
  options.mode = Mode::kThreads;
  EXPECT_EQ(first, hash_of_run(options, float_sums(), nullptr));
  options.mode = Mode::kMixed;
  EXPECT_EQ(first, hash_of_run(options, float_sums(), nullptr));
}

TEST_P(Ranks, SameBitsInEveryMemoryAndPlacement) {
  const uint64_t first = hash_of_run({.ranks = GetParam()}, float_sums(), nullptr);
  for (Memory memory : {Memory::kPlain, Memory::kAlternate, Memory::kRegistered}) {
    std::vector<Case> cases = float_sums();
    for (size_t i = 0; i < cases.size(); ++i) {
      cases[i].memory = memory;
      cases[i].in_place = i % 2 == 0;
      cases[i].offset = i % 5;
    }
    EXPECT_EQ(first, hash_of_run({.ranks = GetParam()}, cases, nullptr));
  }
}

TEST_P(Ranks, SameBitsWhenPlainMemoryIsStaged) {
  std::vector<Case> cases = float_sums();
  const uint64_t first = hash_of_run({.ranks = GetParam()}, cases, nullptr);
  for (Case& test : cases) test.memory = Memory::kPlain;
  EXPECT_EQ(first, hash_of_run({.ranks = GetParam(), .env = {{"ZBCCL_CMA", "0"}}}, cases, nullptr));
}

// NaN, infinities, zeros of both signs, denormals and extremes at every position of a vector.
TEST_P(Ranks, SpecialValues) {
  for (const char* one_shot_max : {"1", "1G"}) {
    const JobOptions options{.ranks = GetParam(),
                             .mode = Mode::kThreads,
                             .deadline = seconds(60),
                             .env = {{"ZBCCL_ONE_SHOT_MAX", one_shot_max}}};
    run_job(options, [](Rank& rank) {
      Communicator comm = connect(rank);
      CaseRunner runner(rank, comm, 5);
      for (zbcclDataType_t type : {zbcclFloat32, zbcclFloat64, zbcclFloat16, zbcclBfloat16,
                                   zbcclFloat8e4m3, zbcclFloat8e5m2}) {
        // What only moves keeps every bit, signalling NaN included.
        for (Case test : every_operation(Memory::kRegistered, 3001, rank.size())) {
          test.type = type;
          test.offset = 1;
          test.fill = Fill::kSpecial;
          for (int op = 0; op < (test.reduces() ? static_cast<int>(zbcclNumOps) : 1); ++op) {
            test.op = static_cast<zbcclRedOp_t>(op);
            runner.run(test);
          }
        }
      }
      comm.destroy();
    });
  }
}

TEST(Numerics, OneRankCopiesEveryBit) {
  run_job({.ranks = 1}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const uint32_t signalling = 0xffa12345u;
    for (int op = 0; op < zbcclNumOps; ++op) {
      uint32_t out = 0;
      comm.all_reduce(&signalling, &out, 1, zbcclFloat32, static_cast<zbcclRedOp_t>(op));
      EXPECT_EQ(signalling, out) << zbcclOpName(static_cast<zbcclRedOp_t>(op));
    }
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
