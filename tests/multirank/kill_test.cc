// A rank dies without a word: every survivor is told who, soon, and can go on without it; and
// nothing is left behind.
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "support/connect.h"
#include "support/expect_error.h"
#include "support/process_state.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// The issue asks for milliseconds; a loaded machine gets this much.
constexpr seconds kSoon{2};

// The survivors of a job in which `victim` died form a communicator among themselves.
void expect_new_communicator(Rank& rank, int victim) {
  const int index = rank.next_index();
  const int leader = victim == 0 ? 1 : 0;
  zbcclUniqueId id;
  if (rank.rank() == leader) {
    check(zbcclGetUniqueId(&id));
    rank.board().put_blob(index, &id, sizeof id);
  }
  ASSERT_TRUE(rank.board().get_blob(index, &id, sizeof id, seconds(30)));
  const zbcclConfig_t config = test_config();
  const int survivors = rank.size() - 1;
  const int place = rank.rank() - (rank.rank() > victim ? 1 : 0);
  Communicator comm = Communicator::from_id(survivors, place, id, &config);
  Buffer<float> x(5000);
  std::fill(x.begin(), x.end(), 1.0f);
  comm.all_reduce(x.span());
  EXPECT_EQ(static_cast<float>(survivors), x[4999]);
  comm.destroy();
}

// Runs `body` on every rank until it fails; `victim` kills itself after `life`. Every survivor's
// failure must name the victim and come soon after its death.
void run_with_death(int ranks, int victim, milliseconds life,
                    const std::function<zbcclResult_t(Communicator&)>& body) {
  const auto files = shared_memory_files();
  run_job({.ranks = ranks, .killed = {victim}}, [&](Rank& rank) {
    Communicator comm = connect(rank);
    comm.barrier();
    rank.meet();  // nobody is still in the barrier
    std::thread killer;
    if (rank.rank() == victim) {
      killer = std::thread([&] {
        std::this_thread::sleep_for(life);
        const auto now = steady_clock::now().time_since_epoch().count();
        rank.board().publish(victim, 0, static_cast<uint64_t>(now));
        ::kill(::getpid(), SIGKILL);
      });
      for (;;) {
        if (body(comm) != zbcclSuccess) ADD_FAILURE() << zbcclGetLastError();
      }
    }
    zbcclResult_t got = zbcclSuccess;
    while (got == zbcclSuccess) got = body(comm);
    const auto end = steady_clock::now();
    expect_error(zbcclRemoteFailed, got, {"rank " + std::to_string(victim)});
    const steady_clock::time_point death{
        steady_clock::duration(static_cast<int64_t>(rank.board().value(victim, 0)))};
    EXPECT_LT(end - death, sanitized() ? 5 * kSoon : kSoon);
    EXPECT_EQ(zbcclRemoteFailed, comm.async_error());
    expect_error(zbcclRemoteFailed, zbcclBarrier(comm.get(), nullptr),
                 {"rank " + std::to_string(victim)});
    comm.destroy();
    expect_new_communicator(rank, victim);
  });
  EXPECT_EQ(files, shared_memory_files());
}

class Kill : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Victim, Kill, testing::Values(0, 2, 4));

TEST_P(Kill, InSmallAllReduces) {
  run_with_death(5, GetParam(), milliseconds(60), [](Communicator& comm) {
    float x = 1;
    return zbcclAllReduce(&x, &x, 1, zbcclFloat32, zbcclMax, comm.get(), nullptr);
  });
}

TEST_P(Kill, InLargeAllReducesOfRegisteredMemory) {
  run_with_death(5, GetParam(), milliseconds(100), [](Communicator& comm) {
    static thread_local Buffer<float> x(1 << 20);
    return zbcclAllReduce(x.data(), x.data(), x.size(), zbcclFloat32, zbcclMax, comm.get(),
                          nullptr);
  });
}

TEST_P(Kill, InLargeAllReducesOfPlainMemory) {
  run_with_death(5, GetParam(), milliseconds(100), [](Communicator& comm) {
    static thread_local std::vector<float> x(1 << 20);
    return zbcclAllReduce(x.data(), x.data(), x.size(), zbcclFloat32, zbcclMax, comm.get(),
                          nullptr);
  });
}

TEST_P(Kill, WhileOthersWaitInABroadcast) {
  const int victim = GetParam();
  run_with_death(5, victim, milliseconds(50), [victim](Communicator& comm) {
    if (comm.rank() == victim) {  // everyone else waits for it
      std::this_thread::sleep_for(seconds(60));
      return zbcclSuccess;
    }
    float x = 0;
    return zbcclBroadcast(&x, &x, 1, zbcclFloat32, victim, comm.get(), nullptr);
  });
}

TEST_P(Kill, WhileOthersReceive) {
  const int victim = GetParam();
  run_with_death(5, victim, milliseconds(50), [victim](Communicator& comm) {
    if (comm.rank() == victim) {
      std::this_thread::sleep_for(seconds(60));
      return zbcclSuccess;
    }
    float x = 0;
    return zbcclRecv(&x, 1, zbcclFloat32, victim, comm.get(), nullptr);
  });
}

TEST_P(Kill, WhileOthersComputeIsSeenByTheQuery) {
  const int victim = GetParam();
  run_job({.ranks = 5, .killed = {victim}}, [&](Rank& rank) {
    Communicator comm = connect(rank);
    comm.barrier();
    rank.meet();  // nobody is still in the barrier
    if (rank.rank() == victim) ::kill(::getpid(), SIGKILL);
    const auto start = steady_clock::now();
    while (comm.async_error() == zbcclSuccess && steady_clock::now() - start < seconds(20)) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    EXPECT_EQ(zbcclRemoteFailed, comm.async_error());
    comm.destroy();
  });
}

// A rank that ends its process without destroying the communicator is as dead as a killed one.
TEST(KillExit, ARankThatJustExits) {
  run_job({.ranks = 3}, [](Rank& rank) {
    Communicator comm = connect(rank);
    comm.barrier();
    rank.meet();  // nobody is still in the barrier
    if (rank.rank() == 1) ::_exit(0);
    expect_error(zbcclRemoteFailed, zbcclBarrier(comm.get(), nullptr), {"rank 1"});
    comm.destroy();
  });
}

// A rank that leaves in order is no failure until it is missed.
TEST(KillExit, ARankThatLeftIsNamedWhenItIsMissed) {
  run_job({.ranks = 3}, [](Rank& rank) {
    Communicator comm = connect(rank);
    comm.barrier();
    rank.meet();  // nobody is still in the barrier
    if (rank.rank() == 1) {
      comm.destroy();
      return;
    }
    std::this_thread::sleep_for(milliseconds(100));
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    const zbcclResult_t got = zbcclBarrier(comm.get(), nullptr);
    EXPECT_TRUE(got == zbcclRemoteFailed || got == zbcclInvalidUsage) << zbcclGetErrorString(got);
    EXPECT_NE(std::string::npos, std::string(zbcclGetLastError()).find("rank 1"))
        << zbcclGetLastError();
    comm.destroy();
  });
}

TEST(KillInit, ADeathDuringInitialisationEndsIt) {
  run_job({.ranks = 3, .killed = {2}}, [](Rank& rank) {
    zbcclUniqueId id;
    if (rank.rank() == 0) {
      check(zbcclGetUniqueId(&id));
      rank.board().put_blob(0, &id, sizeof id);
    }
    ASSERT_TRUE(rank.board().get_blob(0, &id, sizeof id, seconds(30)));
    if (rank.rank() == 2) ::kill(::getpid(), SIGKILL);
    zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
    config.init_timeout_ms = 700;
    zbcclComm_t comm = nullptr;
    const zbcclResult_t got = zbcclCommInitRank(&comm, 3, id, rank.rank(), &config);
    EXPECT_TRUE(got == zbcclTimeout || got == zbcclRemoteFailed) << zbcclGetErrorString(got);
    EXPECT_NE(std::string::npos, std::string(zbcclGetLastError()).find("2")) << zbcclGetLastError();
    rank.meet(2);
  });
}

TEST(KillMany, RepeatedDeathsLeaveNothingBehind) {
  const auto files = shared_memory_files();
  for (int round = 0; round < 15; ++round) {
    const int victim = round % 3;
    run_job({.ranks = 3, .killed = {victim}}, [&](Rank& rank) {
      Communicator comm = connect(rank);
      Buffer<float> x(20000);
      const auto start = steady_clock::now();
      const auto life = milliseconds(5 + 7 * round);
      zbcclResult_t got = zbcclSuccess;
      while (got == zbcclSuccess) {
        if (rank.rank() == victim && steady_clock::now() - start > life) {
          ::kill(::getpid(), SIGKILL);
        }
        got = zbcclAllReduce(x.data(), x.data(), x.size(), zbcclFloat32, zbcclMax, comm.get(),
                             nullptr);
      }
      expect_error(zbcclRemoteFailed, got, {"rank " + std::to_string(victim)});
      comm.destroy();
    });
  }
  EXPECT_EQ(files, shared_memory_files());
}

}  // namespace
}  // namespace zbccl::test
