// Every collective over type, operator, size, placement and kind of memory, on every number of
// ranks from 1 to 8 as threads, processes and both. One job runs all cases of a rank count on one
// communicator.
#include <gtest/gtest.h>

#include <tuple>

#include "multirank/collective_case.h"
#include "support/connect.h"

namespace zbccl::test {
namespace {

class Matrix : public testing::TestWithParam<std::tuple<Mode, int>> {};
INSTANTIATE_TEST_SUITE_P(Collectives, Matrix,
                         testing::Combine(testing::Values(Mode::kThreads, Mode::kProcesses),
                                          testing::Range(1, 9)),
                         [](const auto& test) {
                           return std::string(mode_name(std::get<0>(test.param))) +
                                  std::to_string(std::get<1>(test.param));
                         });
INSTANTIATE_TEST_SUITE_P(MixedCollectives, Matrix,
                         testing::Combine(testing::Values(Mode::kMixed), testing::Values(3, 6)),
                         [](const auto& test) {
                           return "mixed" + std::to_string(std::get<1>(test.param));
                         });

TEST_P(Matrix, Small) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode, .deadline = std::chrono::seconds(90)}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 1);
    runner.run_all(small_cases(rank.size()));
    comm.destroy();
  });
}

TEST_P(Matrix, Large) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode, .deadline = std::chrono::seconds(90)}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 2);
    runner.run_all(large_cases(rank.size()));
    comm.destroy();
  });
}

// Every alignment of a buffer within a cache line and every length of a tail.
TEST_P(Matrix, UnalignedHeadsAndTails) {
  const auto [mode, ranks] = GetParam();
  if (ranks > 4) GTEST_SKIP() << "covered by fewer ranks";
  run_job({.ranks = ranks, .mode = mode, .deadline = std::chrono::seconds(90)}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 3);
    for (zbcclDataType_t type : {zbcclUint8, zbcclBfloat16, zbcclFloat32}) {
      for (size_t i = 0; i < 70; ++i) {
        runner.run({.type = type, .count = 64 + i, .offset = i % 16, .in_place = i % 2 == 0});
        runner.run({.operation = Operation::kAllGather,
                    .type = type,
                    .count = 1 + i,
                    .offset = i % 16,
                    .memory = i % 3 == 0 ? Memory::kPlain : Memory::kRegistered});
      }
    }
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
