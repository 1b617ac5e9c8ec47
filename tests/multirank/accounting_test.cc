// What was staged, what landed, what is held: the words of the memory report, measured.
#include <gtest/gtest.h>

#include <string>

#include "multirank/collective_case.h"
#include "support/connect.h"

namespace zbccl::test {
namespace {

class Accounting : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, Accounting,
                         testing::Values(Mode::kThreads, Mode::kProcesses, Mode::kMixed),
                         [](const auto& test) { return mode_name(test.param); });

TEST_P(Accounting, RegisteredMemoryIsNeverStaged) {
  for (const char* cma : {"0", "1"}) {
    run_job({.ranks = 4, .mode = GetParam(), .env = {{"ZBCCL_CMA", cma}}}, [](Rank& rank) {
      Communicator comm = connect(rank);
      CaseRunner runner(rank, comm, 6);
      for (size_t count : {1, 1000, 300000}) {
        runner.run_all(every_operation(Memory::kRegistered, count, rank.size()));
      }
      EXPECT_EQ(0u, comm.stats().staged_bytes);
      rank.meet();
      EXPECT_EQ(0u, memory_report().staged_bytes);
      EXPECT_EQ(0u, memory_report().staged_calls);
      comm.destroy();
    });
  }
}

TEST_P(Accounting, WhatDoesNotReduceLandsNowhere) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 7);
    for (Memory memory : {Memory::kRegistered, Memory::kPlain}) {
      for (const Case& test : every_operation(memory, 50000, rank.size())) {
        if (!test.reduces()) runner.run(test);
      }
    }
    EXPECT_EQ(0u, comm.stats().landing_bytes);
    rank.meet();
    EXPECT_EQ(0u, memory_report().landing_bytes);
    comm.destroy();
  });
}

// Peers write into the buffers of an all_to_all in place, and never into memory that they do not
// map.
bool needs_mapped_memory(const Case& test) {
  return test.operation == Operation::kAllToAll && test.in_place;
}

// What all ranks together staged, landed and attached during one case.
struct Moved {
  uint64_t staged = 0;
  uint64_t landed = 0;
  uint64_t attached = 0;
};

Moved moved_by(Rank& rank, Communicator& comm, CaseRunner& runner, const Case& test) {
  const zbcclCommStats_t before = comm.stats();
  const uint64_t attached = memory_report().attached_bytes;
  runner.run(test);
  rank.meet();
  const zbcclCommStats_t after = comm.stats();
  rank.board().publish(rank.rank(), 0, after.staged_bytes - before.staged_bytes);
  rank.board().publish(rank.rank(), 1, after.landing_bytes - before.landing_bytes);
  rank.board().publish(rank.rank(), 2, memory_report().attached_bytes - attached);
  rank.meet();
  Moved all;
  for (int r = 0; r < rank.size(); ++r) {
    all.staged += rank.board().value(r, 0);
    all.landed += rank.board().value(r, 1);
    all.attached += rank.board().value(r, 2);
  }
  rank.meet();
  return all;
}

// Without cross-memory attach, memory from malloc goes through the library's, and it is counted:
// small inputs of a reduction land there anyway, everything else is staged.
TEST(StagedMemory, IsCountedForEveryOperation) {
  run_job({.ranks = 3, .env = {{"ZBCCL_CMA", "0"}}}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 8);
    for (size_t count : {1, 1000, 300000}) {
      for (const Case& test : every_operation(Memory::kPlain, count, rank.size())) {
        const Moved moved = moved_by(rank, comm, runner, test);
        EXPECT_GT(moved.staged + (test.reduces() ? moved.landed : 0), 0u) << test.name();
        if (count == 300000) {
          EXPECT_GE(moved.staged, count * sizeof(float)) << test.name();
        }
        EXPECT_EQ(0u, moved.attached) << test.name();
      }
    }
    EXPECT_GT(memory_report().staged_bytes, 0u);
    EXPECT_GT(memory_report().staged_calls, 0u);
    comm.destroy();
  });
}

// With it, nothing else is staged, and what it moved is counted apart.
TEST(AttachedMemory, IsCountedAndNotStaged) {
  run_job({.ranks = 3}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 8);
    if (moved_by(rank, comm, runner, {.count = 300000, .memory = Memory::kPlain}).attached == 0) {
      GTEST_SKIP() << "this system does not allow cross-memory attach";
    }
    for (const Case& test : every_operation(Memory::kPlain, 300000, rank.size())) {
      if (needs_mapped_memory(test)) continue;
      const Moved moved = moved_by(rank, comm, runner, test);
      EXPECT_EQ(0u, moved.staged) << test.name();
      EXPECT_GT(moved.attached, 0u) << test.name();
    }
    for (const Case& test : every_operation(Memory::kRegistered, 300000, rank.size())) {
      EXPECT_EQ(0u, moved_by(rank, comm, runner, test).attached) << test.name();
    }
    EXPECT_EQ(0u, memory_report().staged_calls);
    comm.destroy();
  });
}

// Threads of one process read each other's memory whatever it is.
TEST(StagedMemory, IsNotNeededWithinAProcess) {
  run_job({.ranks = 3, .mode = Mode::kThreads, .env = {{"ZBCCL_CMA", "0"}}}, [](Rank& rank) {
    Communicator comm = connect(rank);
    CaseRunner runner(rank, comm, 9);
    for (const Case& test : every_operation(Memory::kPlain, 5000, rank.size())) {
      if (!needs_mapped_memory(test)) runner.run(test);
    }
    EXPECT_EQ(0u, comm.stats().staged_bytes);
    comm.destroy();
  });
}

TEST(Stats, CountOperationsAndBytes) {
  run_job({.ranks = 2, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    EXPECT_STREQ("none", comm.last_algorithm());
    std::vector<float> x(100, 1.0f);
    for (int i = 0; i < 5; ++i) comm.all_reduce(std::span<float>(x));
    comm.barrier();
    const zbcclCommStats_t stats = comm.stats();
    EXPECT_EQ(6u, stats.operations);
    EXPECT_EQ(0u, stats.failures);
    EXPECT_EQ(5u * 100 * sizeof(float), stats.bytes);
    EXPECT_GT(stats.metadata_bytes, 0u);
    EXPECT_STRNE("none", comm.last_algorithm());
    comm.destroy();
  });
}

TEST(MemReport, FollowsAllocations) {
  run_job({.ranks = 1}, [](Rank&) {
    constexpr size_t kBytes = size_t{3} << 20;
    const uint64_t before = memory_report().user_bytes;
    {
      Buffer<std::byte> buffer(kBytes);
      EXPECT_EQ(0u, reinterpret_cast<uintptr_t>(buffer.data()) % 128);
      const zbcclMemReport_t report = memory_report();
      EXPECT_GE(report.user_bytes - before, kBytes);
      EXPECT_GE(report.reserved_bytes, kBytes);
    }
    EXPECT_EQ(before, memory_report().user_bytes);
  });
}

// What is freed beyond ZBCCL_POOL_KEEP goes back to the system.
TEST(MemReport, FreedMemoryIsGivenBack) {
  run_job({.ranks = 1, .env = {{"ZBCCL_POOL_KEEP", "1M"}}}, [](Rank&) {
    for (int round = 0; round < 3; ++round) {
      Buffer<std::byte> buffer(size_t{64} << 20);
      std::fill(buffer.begin(), buffer.end(), std::byte{1});
    }
    EXPECT_LE(memory_report().held_bytes, uint64_t{8} << 20);
  });
}

}  // namespace
}  // namespace zbccl::test
