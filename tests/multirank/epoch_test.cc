// The 32-bit epochs of signals wrap after four thousand million operations; starting just below the
// end makes that happen within a test.
#include <gtest/gtest.h>

#include "multirank/collective_case.h"
#include "support/connect.h"

namespace zbccl::test {
namespace {

class EpochWrap : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, EpochWrap, testing::Values(Mode::kThreads, Mode::kProcesses),
                         [](const auto& test) { return mode_name(test.param); });

TEST_P(EpochWrap, EveryOperationGoesOn) {
  for (const char* base : {"4294967290", "4294967295", "2147483640"}) {
    for (const char* one_shot_max : {"0", "1"}) {
      const JobOptions options{
          .ranks = 3,
          .mode = GetParam(),
          .env = {{"ZBCCL_EPOCH_BASE", base}, {"ZBCCL_ONE_SHOT_MAX", one_shot_max}}};
      run_job(options, [](Rank& rank) {
        Communicator comm = connect(rank);
        CaseRunner runner(rank, comm, 10);
        for (int round = 0; round < 12; ++round) {
          const Memory memory = round % 2 == 0 ? Memory::kRegistered : Memory::kPlain;
          runner.run_all(every_operation(memory, 1000, rank.size()));
          comm.barrier();
        }
        Communicator part = comm.split(rank.rank() % 2, 0);
        float one = 1;
        for (int i = 0; i < 20; ++i) part.all_reduce(&one, &one, 1, zbcclFloat32, zbcclMax);
        part.destroy();
        comm.destroy();
      });
    }
  }
}

// The wrap of one kind of operation alone, through several wraps of smaller counters.
TEST(EpochWrap, ManyOfOneKind) {
  const JobOptions options{
      .ranks = 2, .mode = Mode::kThreads, .env = {{"ZBCCL_EPOCH_BASE", "4294966000"}}};
  run_job(options, [](Rank& rank) {
    Communicator comm = connect(rank);
    for (int i = 0; i < 3000; ++i) {
      int32_t value = i + rank.rank();
      comm.all_reduce(&value, &value, 1, zbcclInt32);
      ASSERT_EQ(2 * i + 1, value);
    }
    for (int i = 0; i < 3000; ++i) comm.barrier();
    for (int i = 0; i < 3000; ++i) {
      int32_t value = i;
      if (rank.rank() == i % 2) {
        comm.send(&value, 1, zbcclInt32, 1 - rank.rank());
      } else {
        value = -1;
        comm.recv(&value, 1, zbcclInt32, 1 - rank.rank());
        ASSERT_EQ(i, value);
      }
    }
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
