// Communicators: how they are made, split, shrunk, ended, and what is told of them.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "nccl/ranks.h"

namespace zbccl::test {
namespace {

// Until it is not in progress any more.
ncclResult_t settled(ncclComm_t comm) {
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) {
    check(ncclCommGetAsyncError(comm, &state));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return state;
}

class Life : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(As, Life, testing::Values(Mode::kThreads, Mode::kProcesses),
                         [](const auto& test) { return mode_name(test.param); });

TEST_P(Life, InitIsTheSameInEveryForm) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    ncclComm_t comm = nullptr;
    check(ncclCommInitRank(&comm, 3, shared_id(rank), rank.rank()));
    const Comm plain(comm);
    EXPECT_EQ(rank.rank(), plain.rank());
    EXPECT_EQ(3, plain.size());
    int device = 7;
    check(ncclCommCuDevice(comm, &device));
    EXPECT_EQ(-1, device);
    expect_sum(plain, rank.rank(), 3);

    std::vector<ncclUniqueId> ids = {shared_id(rank), shared_id(rank)};
    check(ncclCommInitRankScalable(&comm, 3, rank.rank(), 2, ids.data(), nullptr));
    const Comm scalable(comm);
    expect_sum(scalable, rank.rank(), 3);

    // Of a program that was compiled when there were fewer fields.
    ncclConfig_t old = open_config();
    old.size = offsetof(ncclConfig_t, commName);
    old.maxCTAs = 4;
    const Comm configured = connect(rank, &old);
    expect_sum(configured, rank.rank(), 3);
  });
}

TEST_P(Life, InitBesideTheCaller) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    ncclConfig_t config = open_config();
    config.blocking = 0;
    ncclComm_t comm = nullptr;
    ASSERT_EQ(ncclInProgress,
              ncclCommInitRankConfig(&comm, 3, shared_id(rank), rank.rank(), &config));
    ASSERT_NE(nullptr, comm);
    ASSERT_EQ(ncclSuccess, settled(comm));
    const Comm kept(comm);
    expect_sum(comm, rank.rank(), 3);
    // What it makes inherits that.
    ncclComm_t part = nullptr;
    ASSERT_EQ(ncclInProgress, ncclCommSplit(comm, 0, -rank.rank(), &part, nullptr));
    ASSERT_EQ(ncclSuccess, settled(comm));
    ASSERT_EQ(ncclSuccess, settled(part));
    const Comm held(part);
    EXPECT_EQ(2 - rank.rank(), held.rank());
    expect_sum(part, held.rank(), 3);
  });
}

// A rank that is waited for in vain is not waited for any longer.
TEST(Abort, OfWhatIsStillBeingMade) {
  run_job({.ranks = 1}, [](Rank&) {
    ncclConfig_t config = open_config();
    config.blocking = 0;
    ncclUniqueId id;
    check(ncclGetUniqueId(&id));
    ncclComm_t comm = nullptr;
    ASSERT_EQ(ncclInProgress, ncclCommInitRankConfig(&comm, 2, id, 0, &config));
    int64_t value = 1;
    expect_refused(ncclInvalidArgument,
                   ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, comm, nullptr),
                   {"still being made"});
    check(ncclCommAbort(comm));
    expect_refused(ncclInvalidArgument, ncclCommAbort(comm), {"destroyed"});
  });
}

TEST_P(Life, Split) {
  run_job({.ranks = 5, .mode = GetParam()}, [](Rank& rank) {
    const Comm all = connect(rank);
    ncclComm_t part = nullptr;
    const int color = rank.rank() == 4 ? NCCL_SPLIT_NOCOLOR : rank.rank() % 2;
    check(ncclCommSplit(all, color, 10 - rank.rank(), &part, nullptr));
    if (color < 0) {
      EXPECT_EQ(nullptr, part);
    } else {
      const Comm kept(part);
      EXPECT_EQ(2, kept.size());
      EXPECT_EQ(rank.rank() / 2 == 0 ? 1 : 0, kept.rank());
      expect_sum(kept, kept.rank(), 2);
    }
    expect_sum(all, rank.rank(), 5);
  });
}

TEST_P(Life, ShrinkOfOneThatIsWell) {
  run_job({.ranks = 4, .mode = GetParam()}, [](Rank& rank) {
    Comm comm = connect(rank);
    for (int left = 4; left > 1; --left) {
      // The last rank goes; it does not call.
      if (rank.rank() == left - 1) return;
      int gone = left - 1;
      ncclComm_t less = nullptr;
      check(ncclCommShrink(comm, &gone, 1, &less, nullptr, NCCL_SHRINK_DEFAULT));
      comm = Comm(less);
      EXPECT_EQ(left - 1, comm.size());
      EXPECT_EQ(rank.rank(), comm.rank());
      expect_sum(comm, comm.rank(), left - 1);
    }
  });
}

// What NCCL_SHRINK_ABORT is for.
TEST(Shrink, AfterADeath) {
  run_job({.ranks = 4, .killed = {1}}, [](Rank& rank) {
    const Comm comm = connect(rank);
    expect_sum(comm, rank.rank(), 4);
    rank.meet();
    if (rank.rank() == 1) raise(SIGKILL);
    int64_t value = 1;
    const ncclResult_t result = ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, comm, nullptr);
    EXPECT_EQ(ncclRemoteError, result) << ncclGetLastError(comm);
    ncclResult_t state = ncclSuccess;
    check(ncclCommGetAsyncError(comm, &state));
    EXPECT_EQ(ncclRemoteError, state);
    int gone = 1;
    ncclComm_t less = nullptr;
    check(ncclCommShrink(comm, &gone, 1, &less, nullptr, NCCL_SHRINK_ABORT));
    const Comm kept(less);
    EXPECT_EQ(3, kept.size());
    EXPECT_EQ(rank.rank() == 0 ? 0 : rank.rank() - 1, kept.rank());
    expect_sum(kept, kept.rank(), 3);
  });
}

TEST(Shrink, AfterARevocation) {
  run_job({.ranks = 3}, [](Rank& rank) {
    const Comm comm = connect(rank);
    rank.meet();  // else a rank that is still in its init would be told
    int64_t value = 1;
    if (rank.rank() == 0) {
      check(ncclCommRevoke(comm, 0));
    } else {
      // It waits for rank 0, which never comes.
      EXPECT_EQ(ncclRemoteError,
                ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, comm, nullptr));
      check(ncclCommRevoke(comm, 0));
    }
    ncclResult_t state = ncclInternalError;
    check(ncclCommGetAsyncError(comm, &state));
    EXPECT_EQ(ncclSuccess, state);
    expect_refused(ncclInvalidUsage,
                   ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, comm, nullptr),
                   {"revoked", "ncclCommShrink"});
    if (rank.rank() == 2) return;
    int gone = 2;
    ncclComm_t less = nullptr;
    check(ncclCommShrink(comm, &gone, 1, &less, nullptr, NCCL_SHRINK_DEFAULT));
    const Comm kept(less);
    expect_sum(kept, rank.rank(), 2);
  });
}

TEST(Shrink, WaitsNotForEver) {
  run_job({.ranks = 3, .env = {{"ZBCCL_INIT_TIMEOUT", "300ms"}}}, [](Rank& rank) {
    // The deadline is for the shrink and must not be the init's, on a busy machine.
    setenv("ZBCCL_INIT_TIMEOUT", "60s", 1);
    const Comm comm = connect(rank);
    setenv("ZBCCL_INIT_TIMEOUT", "300ms", 1);
    if (rank.rank() == 0) {
      int gone = 2;
      ncclComm_t less = nullptr;
      expect_refused(ncclRemoteError, ncclCommShrink(comm, &gone, 1, &less, nullptr, 0),
                     {"did not come"});
      EXPECT_EQ(nullptr, less);
    }
    rank.meet();
    expect_sum(comm, rank.rank(), 3);
  });
}

TEST(Abort, EndsAnotherThreadsCall) {
  run_job({.ranks = 2}, [](Rank& rank) {
    Comm comm = connect(rank);
    expect_sum(comm, rank.rank(), 2);
    if (rank.rank() == 1) {
      rank.meet();  // while rank 0 waits for it
      ncclResult_t state = ncclSuccess;
      while (state == ncclSuccess) check(ncclCommGetAsyncError(comm, &state));
      EXPECT_EQ(ncclRemoteError, state);
      return;
    }
    std::atomic<bool> ended{false};
    std::thread caller([&] {
      int64_t value = 1;
      EXPECT_NE(ncclSuccess, ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, comm, nullptr));
      ended = true;
    });
    rank.meet();
    check(ncclCommAbort(comm));
    caller.join();
    EXPECT_TRUE(ended);
    comm.release();
  });
}

TEST(Finalize, LeavesTheHandleOnly) {
  run_job({.ranks = 2}, [](Rank& rank) {
    const Comm comm = connect(rank);
    expect_sum(comm, rank.rank(), 2);
    check(ncclCommFinalize(comm));
    EXPECT_EQ(rank.rank(), comm.rank());
    ncclResult_t state = ncclInternalError;
    check(ncclCommGetAsyncError(comm, &state));
    EXPECT_EQ(ncclSuccess, state);
    int64_t value = 1;
    expect_refused(ncclInvalidUsage,
                   ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, comm, nullptr),
                   {"finalized"});
    expect_refused(ncclInvalidUsage, ncclCommFinalize(comm), {"finalized"});
  });
}

// What the ranks differ in is told to each of them.
TEST(Mismatch, IsReported) {
  run_job({.ranks = 2}, [](Rank& rank) {
    const Comm comm = connect(rank);
    std::vector<float> values(8, 1);
    expect_refused(ncclInvalidUsage,
                   ncclAllReduce(values.data(), values.data(), rank.rank() == 0 ? 8 : 4,
                                 ncclFloat32, ncclSum, comm, nullptr),
                   {"all_reduce"});
    expect_sum(comm, rank.rank(), 2);
  });
}

}  // namespace
}  // namespace zbccl::test
