// Many ranks, more ranks than cores, ranks that start late, and every way of waiting.
#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "multirank/collective_case.h"
#include "support/connect.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Scale : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, Scale,
                         testing::Values(Mode::kThreads, Mode::kProcesses, Mode::kMixed),
                         [](const auto& test) { return mode_name(test.param); });

TEST_P(Scale, SixtyFourRanks) {
  run_job({.ranks = 64, .mode = GetParam(), .deadline = seconds(100)}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 11);
    for (int i = 0; i < 3; ++i) {
      runner.run({.type = zbcclBfloat16, .count = 1000});
      runner.run({.operation = Operation::kAllGather, .count = 10});
      runner.run({.operation = Operation::kBroadcast, .count = 100, .root = 63});
    }
    runner.run({.count = 100000});
    runner.run({.operation = Operation::kReduceScatter, .count = 50, .memory = Memory::kPlain});
    runner.run({.operation = Operation::kSendRecv, .count = 50});
    comm.barrier();
    comm.destroy();
  });
}

TEST_P(Scale, SeventeenRanksSplitInUnequalParts) {
  run_job({.ranks = 17, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Communicator part = comm.split(rank.rank() < 11 ? 0 : 1, 0);
    CaseRunner runner(rank, part, 12);
    runner.run({.count = 5000});
    runner.run({.operation = Operation::kAllGather, .count = 777});
    part.destroy();
    comm.destroy();
  });
}

TEST_P(Scale, RanksStartLate) {
  run_job({.ranks = 5, .mode = GetParam(), .max_start_delay = milliseconds(700)}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 13);
    for (uint64_t i = 0; i < 20; ++i) {
      const uint64_t delay = seed_of(i, static_cast<uint64_t>(rank.rank())) % 20;
      std::this_thread::sleep_for(milliseconds(delay));
      runner.run({.count = 3000, .in_place = i % 2 == 0});
      runner.run({.operation = Operation::kAllGather, .count = 3000});
    }
    comm.destroy();
  });
}

// One rank is always last by far: nobody may run ahead and overwrite what it has yet to read.
TEST_P(Scale, OneSlowRank) {
  run_job({.ranks = 4, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 14);
    for (int i = 0; i < 40; ++i) {
      if (rank.rank() == i % 4) std::this_thread::sleep_for(milliseconds(3));
      runner.run({.count = i % 2 == 0 ? size_t{100} : size_t{40000}});
      runner.run({.operation = Operation::kBroadcast, .count = 100, .root = i % 4});
    }
    comm.destroy();
  });
}

// Ranks need not agree on how they wait.
TEST_P(Scale, EveryWayOfWaiting) {
  for (const char* wait : {"auto", "spin", "sleep"}) {
    run_job({.ranks = 4, .mode = GetParam(), .env = {{"ZBCCL_HOST_WAIT", wait}}}, [](Rank& rank) {
      for (int mixed = 0; mixed < 2; ++mixed) {
        zbcclConfig_t config = test_config();
        if (mixed == 1) config.host_wait = 1 + rank.rank() % 2;
        Communicator comm = connect(rank, config, mixed == 1 ? Join::kId : Join::kAuto);
        CaseRunner runner(rank, comm, 15);
        for (int i = 0; i < 5; ++i) {
          runner.run({.count = 2000, .async = i % 2 == 0});
          runner.run({.operation = Operation::kReduceScatter, .count = 2000});
        }
        comm.destroy();
      }
    });
  }
}

// Initialisation itself, when every rank comes at a different time and several groups form at once.
TEST(ScaleInit, GroupsFormSideBySide) {
  run_job({.ranks = 6, .max_start_delay = milliseconds(300)}, [](Rank& rank) {
    Communicator world = connect(rank);
    for (int round = 0; round < 5; ++round) {
      Communicator part = world.split((rank.rank() + round) % 2, 0);
      int32_t one = 1;
      part.all_reduce(&one, &one, 1, zbcclInt32);
      EXPECT_EQ(3, one);
      part.destroy();
    }
    world.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
