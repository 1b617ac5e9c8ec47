// A rank that does not come: the others get zbcclTimeout within their deadline, naming it.
#include <gtest/gtest.h>

#include <thread>

#include "support/connect.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr milliseconds kTimeout{300};
constexpr seconds kPatience{20};  // far above the timeout, for a loaded machine

class Timeout : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, Timeout, testing::Values(Mode::kThreads, Mode::kProcesses),
                         [](const auto& test) { return mode_name(test.param); });

zbcclCall_t call_with(milliseconds timeout) {
  zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
  call.timeout_ms = timeout.count();
  return call;
}

// After a time-out the others' calls end too, either by their own or because of the first.
void expect_late(zbcclResult_t got, const std::string& missing) {
  EXPECT_TRUE(got == zbcclTimeout || got == zbcclRemoteFailed) << zbcclGetErrorString(got);
  const std::string message = zbcclGetLastError();
  EXPECT_NE(std::string::npos, message.find(missing)) << message;
}

TEST_P(Timeout, OfEveryCollectiveNamesTheMissingRank) {
  for (int operation = 0; operation < 5; ++operation) {
    run_job({.ranks = 3, .mode = GetParam()}, [operation](Rank& rank) {
      Communicator comm = connect(rank);
      std::vector<float> in(3000, 1.0f);
      std::vector<float> out(3000, 7.0f);
      comm.barrier();
      if (rank.rank() == 1) {  // never comes
        rank.meet();
        comm.destroy();
        return;
      }
      const zbcclCall_t call = call_with(kTimeout);
      const auto start = steady_clock::now();
      zbcclResult_t got = zbcclSuccess;
      zbcclComm_t c = comm.get();
      const auto f32 = zbcclFloat32;
      switch (operation) {
        case 0: got = zbcclAllReduce(in.data(), out.data(), 1000, f32, zbcclSum, c, &call); break;
        case 1: got = zbcclAllGather(in.data(), out.data(), 1000, f32, c, &call); break;
        case 2:
          got = zbcclReduceScatter(in.data(), out.data(), 1000, f32, zbcclSum, c, &call);
          break;
        case 3: got = zbcclBroadcast(in.data(), out.data(), 1000, f32, 1, c, &call); break;
        default: got = zbcclBarrier(c, &call); break;
      }
      const auto took = steady_clock::now() - start;
      expect_late(got, "rank 1");
      EXPECT_GE(took, kTimeout / 2);
      EXPECT_LT(took, kPatience);
      for (float value : out) ASSERT_EQ(7.0f, value);
      EXPECT_NE(zbcclSuccess, comm.async_error());
      EXPECT_NE(zbcclSuccess, zbcclBarrier(c, nullptr));  // at once: the communicator has failed
      EXPECT_LT(steady_clock::now() - start, kPatience);
      rank.meet();
      comm.destroy();
    });
  }
}

TEST_P(Timeout, ExactlyOneRankTimesOutFirst) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    if (rank.rank() == 0) {
      const zbcclCall_t call = call_with(kTimeout);
      expect_error(zbcclTimeout, zbcclBarrier(comm.get(), &call), {"rank 1", "barrier"});
      EXPECT_EQ(zbcclTimeout, comm.async_error());
      rank.meet();
    } else {
      rank.meet();
      // Came too late: told whose patience ended.
      expect_error(zbcclRemoteFailed, zbcclBarrier(comm.get(), nullptr), {"rank 0"});
      EXPECT_EQ(zbcclRemoteFailed, comm.async_error());
    }
    comm.destroy();
  });
}

TEST_P(Timeout, OfSendAndReceive) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    for (bool send : {true, false}) {
      Communicator comm = connect(rank);
      float x = 0;
      if (rank.rank() == 0) {
        const zbcclCall_t call = call_with(kTimeout);
        const zbcclResult_t got = send ? zbcclSend(&x, 1, zbcclFloat32, 1, comm.get(), &call)
                                       : zbcclRecv(&x, 1, zbcclFloat32, 1, comm.get(), &call);
        expect_error(zbcclTimeout, got, {"rank 1"});
      }
      rank.meet();
      comm.destroy();
    }
  });
}

TEST_P(Timeout, OfAsynchronousWork) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    if (rank.rank() == 0) {
      float x = 0;
      zbcclWork_t work = nullptr;
      zbcclCall_t call = call_with(kTimeout);
      call.work = &work;
      ASSERT_EQ(zbcclSuccess, zbcclAllReduce(&x, &x, 1, zbcclFloat32, zbcclSum, comm.get(), &call));
      expect_error(zbcclTimeout, zbcclWorkWait(work, 0), {"rank 1"});
      int done = 0;
      expect_error(zbcclTimeout, zbcclWorkTest(work, &done));
      EXPECT_EQ(1, done);
      EXPECT_EQ(zbcclSuccess, zbcclWorkFree(work));
    }
    rank.meet();
    comm.destroy();
  });
}

TEST_P(Timeout, OfTheCommunicatorAndOfTheEnvironment) {
  for (bool by_environment : {true, false}) {
    JobOptions options{.ranks = 2, .mode = GetParam()};
    if (by_environment) options.env = {{"ZBCCL_TIMEOUT", "300ms"}};
    run_job(options, [by_environment](Rank& rank) {
      zbcclConfig_t config = test_config();
      config.timeout_ms = by_environment ? 0 : kTimeout.count();
      Communicator comm = connect(rank, config);
      if (rank.rank() == 1)
        expect_error(zbcclTimeout, zbcclBarrier(comm.get(), nullptr), {"rank 0"});
      rank.meet();
      comm.destroy();
    });
  }
}

// A deadline of one communicator says nothing about the others.
TEST_P(Timeout, LeavesOtherCommunicatorsAlone) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator good = connect(rank);
    Communicator bad = connect(rank);
    if (rank.rank() != 2) {
      const zbcclCall_t call = call_with(kTimeout);
      expect_late(zbcclBarrier(bad.get(), &call), "rank 2");
    }
    rank.meet();
    float one = 1;
    good.all_reduce(&one, &one, 1, zbcclFloat32);
    EXPECT_EQ(3.0f, one);
    EXPECT_EQ(zbcclSuccess, good.async_error());
    Communicator next = good.split(0, 0);
    next.barrier();
    next.destroy();
    bad.destroy();
    good.destroy();
  });
}

TEST(TimeoutInit, NamesWhoIsMissing) {
  run_job({.ranks = 2}, [](Rank& rank) {
    zbcclUniqueId id;
    if (rank.rank() == 0) {
      check(zbcclGetUniqueId(&id));
      rank.board().put_blob(0, &id, sizeof id);
    }
    ASSERT_TRUE(rank.board().get_blob(0, &id, sizeof id, seconds(30)));
    zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
    config.init_timeout_ms = 500;
    zbcclComm_t comm = nullptr;
    // The third rank never starts.
    expect_error(zbcclTimeout, zbcclCommInitRank(&comm, 3, id, rank.rank(), &config), {"2"});
    EXPECT_EQ(nullptr, comm);
    rank.meet();
  });
}

TEST(TimeoutInit, AServerThatIsGone) {
  run_job({.ranks = 1}, [](Rank&) {
    zbcclUniqueId id;
    // Port 1 of this machine: nobody listens there.
    const std::string text = "127.0.0.1:1/" + std::string(64, 'a');
    ASSERT_EQ(zbcclSuccess, zbcclUniqueIdFromString(text.c_str(), &id)) << zbcclGetLastError();
    zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
    config.init_timeout_ms = 500;
    zbcclComm_t comm = nullptr;
    const zbcclResult_t got = zbcclCommInitRank(&comm, 2, id, 0, &config);
    EXPECT_TRUE(got == zbcclTimeout || got == zbcclNetworkError) << zbcclGetErrorString(got);
    EXPECT_NE(std::string::npos, std::string(zbcclGetLastError()).find("127.0.0.1"));
    EXPECT_EQ(std::string::npos, std::string(zbcclGetLastError()).find("aaaa")) << "secret shown";
  });
}

}  // namespace
}  // namespace zbccl::test
