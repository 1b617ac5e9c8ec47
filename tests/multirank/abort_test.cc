// zbcclCommAbort from any thread ends every wait of the communicator on every rank.
#include <gtest/gtest.h>

#include <thread>

#include "support/connect.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

class Abort : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, Abort, testing::Values(Mode::kThreads, Mode::kProcesses),
                         [](const auto& test) { return mode_name(test.param); });

TEST_P(Abort, EndsABlockedCollectiveOnEveryRank) {
  for (const char* wait : {"spin", "sleep"}) {
    run_job({.ranks = 4, .mode = GetParam(), .env = {{"ZBCCL_HOST_WAIT", wait}}}, [](Rank& rank) {
      Communicator comm = connect(rank);
      const auto start = steady_clock::now();
      if (rank.rank() == 3) {  // does not come, and lets a second thread of rank 0 end it all
        while (comm.async_error() == zbcclSuccess && steady_clock::now() - start < seconds(20)) {
          std::this_thread::sleep_for(milliseconds(5));
        }
      } else {
        std::thread other;
        if (rank.rank() == 0) {
          other = std::thread([&] {
            std::this_thread::sleep_for(milliseconds(100));
            EXPECT_EQ(zbcclSuccess, zbcclCommAbort(comm.get()));
          });
        }
        std::vector<float> x(1000, 1.0f);
        expect_error(zbcclAborted, zbcclAllReduce(x.data(), x.data(), x.size(), zbcclFloat32,
                                                  zbcclSum, comm.get(), nullptr));
        if (other.joinable()) other.join();
      }
      EXPECT_LT(steady_clock::now() - start, seconds(20));
      EXPECT_EQ(zbcclAborted, comm.async_error());
      expect_error(zbcclAborted, zbcclBarrier(comm.get(), nullptr));
      comm.destroy();
    });
  }
}

TEST_P(Abort, EndsSendsReceivesAndAsynchronousWork) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    float x = 0;
    float y = 0;
    zbcclWork_t work[2] = {};
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    if (rank.rank() == 0) {
      call.work = &work[0];
      ASSERT_EQ(zbcclSuccess, zbcclRecv(&x, 1, zbcclFloat32, 1, comm.get(), &call));
      call.work = &work[1];
      ASSERT_EQ(zbcclSuccess, zbcclBarrier(comm.get(), &call));
      rank.meet();
      expect_error(zbcclAborted, zbcclWorkWait(work[0], 0));
      expect_error(zbcclAborted, zbcclWorkWait(work[1], 0));
      for (zbcclWork_t one : work) EXPECT_EQ(zbcclSuccess, zbcclWorkFree(one));
    } else if (rank.rank() == 1) {
      rank.meet();
      expect_error(zbcclAborted, zbcclSend(&y, 1, zbcclFloat32, 2, comm.get(), nullptr));
    } else {
      rank.meet();
      std::this_thread::sleep_for(milliseconds(100));
      comm.abort();
    }
    comm.destroy();
  });
}

TEST_P(Abort, LeavesOtherCommunicatorsAlone) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator good = connect(rank);
    Communicator bad = good.split(0, 0);
    rank.meet();  // a rank still in the split would be aborted there
    if (rank.rank() == 0) bad.abort();
    rank.meet();
    expect_error(zbcclAborted, zbcclBarrier(bad.get(), nullptr));
    float one = 1;
    good.all_reduce(&one, &one, 1, zbcclFloat32);
    EXPECT_EQ(3.0f, one);
    bad.destroy();
    Communicator next = good.split(0, 0);
    next.barrier();
    next.destroy();
    good.destroy();
  });
}

TEST_P(Abort, MayBeCalledTwiceAndByEveryRank) {
  run_job({.ranks = 4, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    comm.barrier();
    rank.meet();  // a rank still in the barrier would be aborted there
    comm.abort();
    comm.abort();
    EXPECT_EQ(zbcclAborted, comm.async_error());
    comm.destroy();
  });
}

// Ranks in the middle of large operations, again and again.
TEST_P(Abort, InTheMiddleOfTraffic) {
  run_job({.ranks = 4, .mode = GetParam()}, [](Rank& rank) {
    for (int round = 0; round < 10; ++round) {
      Communicator comm = connect(rank);
      std::thread other;
      if (rank.rank() == round % 4) {
        other = std::thread([&] {
          std::this_thread::sleep_for(milliseconds(10 + round));
          comm.abort();
        });
      }
      Buffer<float> x(100000);
      zbcclResult_t got = zbcclSuccess;
      const auto start = steady_clock::now();
      while (got == zbcclSuccess && steady_clock::now() - start < seconds(20)) {
        got = zbcclAllReduce(x.data(), x.data(), x.size(), zbcclFloat32, zbcclMax, comm.get(),
                             nullptr);
      }
      expect_error(zbcclAborted, got);
      if (other.joinable()) other.join();
      comm.destroy();
    }
  });
}

}  // namespace
}  // namespace zbccl::test
