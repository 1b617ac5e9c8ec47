// Every operation over type, operator, size, placement and kind of memory, on every number of ranks
// from 1 to 8 as threads, processes and both, spinning and sleeping. One job runs all cases of a
// rank count on one communicator.
#include <gtest/gtest.h>

#include <tuple>
#include <vector>

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

// Below, at and above the size where reductions change their algorithm.
TEST_P(Matrix, AroundTheOneShotThreshold) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode, .env = {{"ZBCCL_ONE_SHOT_MAX", "8192"}}}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 17);
    runner.run_all(threshold_cases(8192, rank.size()));
    comm.destroy();
  });
}

// How ranks wait for each other, whatever the number of cores would have decided.
class Waiting : public testing::TestWithParam<std::tuple<Mode, int, const char*>> {};
INSTANTIATE_TEST_SUITE_P(Ways, Waiting,
                         testing::Combine(testing::Values(Mode::kThreads, Mode::kProcesses),
                                          testing::Values(2, 3), testing::Values("spin", "sleep")),
                         [](const auto& test) {
                           return std::string(mode_name(std::get<0>(test.param))) +
                                  std::to_string(std::get<1>(test.param)) + std::get<2>(test.param);
                         });

TEST_P(Waiting, EveryOperation) {
  const auto [mode, ranks, wait] = GetParam();
  run_job({.ranks = ranks, .mode = mode, .env = {{"ZBCCL_HOST_WAIT", wait}}}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 18);
    for (size_t count : {0, 1, 1000, 100000}) {
      for (Memory memory : {Memory::kRegistered, Memory::kPlain, Memory::kAlternate}) {
        runner.run_all(every_operation(memory, count, rank.size()));
      }
    }
    comm.destroy();
  });
}

// Each rank as the root, in place and not, small and large.
TEST_P(Waiting, EveryRoot) {
  const auto [mode, ranks, wait] = GetParam();
  run_job({.ranks = ranks, .mode = mode, .env = {{"ZBCCL_HOST_WAIT", wait}}}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 19);
    for (size_t count : {3, 50000}) {
      for (int root = 0; root < rank.size(); ++root) {
        for (Case test : every_operation(Memory::kAlternate, count, rank.size())) {
          if (!has_root(test.operation)) continue;
          test.root = root;
          runner.run(test);
        }
      }
    }
    comm.destroy();
  });
}

// Outputs so large that kernels write past the cache.
TEST(Huge, StreamedOutputs) {
  for (int ranks : {1, 2, 3}) {
    run_job(
        {.ranks = ranks, .mode = ranks == 3 ? Mode::kThreads : Mode::kProcesses}, [](Rank& rank) {
          Communicator comm = connect(rank);
          CaseRunner runner(rank, comm, 16);
          constexpr size_t kBytes = (size_t{20} << 20) + 5;
          std::vector<Case> cases;
          for (int o = 0; o < kNumOperations; ++o) {
            const bool many =
                operation_at(o) != Operation::kAllReduce && operation_at(o) != Operation::kReduce &&
                operation_at(o) != Operation::kBroadcast && operation_at(o) != Operation::kSendRecv;
            cases.push_back({.operation = operation_at(o),
                             .type = zbcclUint8,
                             .count = many ? kBytes / 2 : kBytes,
                             .offset = 1});
          }
          runner.run_all(cases);
          comm.destroy();
        });
  }
}

// Every alignment of a buffer within a cache line and every length of a tail.
TEST(Alignment, UnalignedHeadsAndTails) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    run_job(
        {.ranks = ranks, .mode = ranks % 2 == 0 ? Mode::kProcesses : Mode::kThreads},
        [](Rank& rank) {
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
}

}  // namespace
}  // namespace zbccl::test
