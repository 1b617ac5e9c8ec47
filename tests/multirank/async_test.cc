// Asynchronous calls: handles, order, many at once, and the life of what they use.
#include <gtest/gtest.h>

#include <deque>
#include <thread>
#include <vector>

#include "support/connect.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;

class Async : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, Async, testing::Values(Mode::kThreads, Mode::kProcesses),
                         [](const auto& test) { return mode_name(test.param); });

TEST_P(Async, WaitGivesTheResultAndMayBeRepeated) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    float x = 1;
    Work work = comm.all_reduce_async(&x, &x, 1, zbcclFloat32);
    EXPECT_TRUE(work.valid());
    work.wait();
    EXPECT_EQ(3.0f, x);
    work.wait();
    EXPECT_TRUE(work.test());
    comm.destroy();
  });
}

TEST_P(Async, TestTurnsTrueAndStays) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    float x = 1;
    if (rank.rank() == 1) rank.meet();  // rank 0 sees its work unfinished first
    Work work = comm.all_reduce_async(&x, &x, 1, zbcclFloat32);
    if (rank.rank() == 0) {
      EXPECT_FALSE(work.test());
      rank.meet();
    }
    while (!work.test()) std::this_thread::sleep_for(milliseconds(1));
    EXPECT_TRUE(work.test());
    EXPECT_EQ(2.0f, x);
    comm.destroy();
  });
}

TEST_P(Async, WaitCanGiveUpAndComeBack) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    float x = 1;
    if (rank.rank() == 1) rank.meet();
    Work work = comm.all_reduce_async(&x, &x, 1, zbcclFloat32);
    if (rank.rank() == 0) {
      try {
        work.wait(milliseconds(20));
        ADD_FAILURE() << "the work cannot be done: rank 1 has not come";
      } catch (const Error& error) {
        EXPECT_EQ(zbcclTimeout, error.code()) << error.what();
      }
      rank.meet();
    }
    work.wait();
    EXPECT_EQ(2.0f, x);
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    comm.destroy();
  });
}

TEST_P(Async, ManyRunInOrder) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    // Each call takes the last one's output: the result is right only if they run in order.
    Buffer<float> x(1000);
    std::fill(x.begin(), x.end(), 1.0f);
    std::deque<Work> works;
    for (int i = 0; i < 12; ++i) {
      works.push_back(comm.all_reduce_async(x.data(), x.data(), x.size(), zbcclFloat32));
    }
    works.back().wait();
    for (Work& work : works) EXPECT_TRUE(work.test());
    EXPECT_EQ(531441.0f, x[0]);  // 3 to the 12th
    EXPECT_EQ(531441.0f, x[999]);
    comm.destroy();
  });
}

TEST_P(Async, HundredsOutstandingOfEveryKind) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    constexpr size_t kCalls = 300;
    std::vector<int32_t> sums(kCalls);
    std::vector<int32_t> all(kCalls * 3);
    std::vector<int32_t> roots(kCalls);
    std::vector<Work> works;
    for (size_t i = 0; i < kCalls; ++i) {
      const auto value = static_cast<int32_t>(i);
      sums[i] = value;
      all[3 * i + static_cast<size_t>(rank.rank())] = value + rank.rank();
      roots[i] = rank.rank() == 1 ? value : -1;
      int32_t* gathered = &all[3 * i];
      works.push_back(comm.all_reduce_async(&sums[i], &sums[i], 1, zbcclInt32));
      works.push_back(comm.all_gather_async(gathered + rank.rank(), gathered, 1, zbcclInt32));
      works.push_back(comm.broadcast_async(&roots[i], &roots[i], 1, zbcclInt32, 1));
      if (i % 50 == 0) works.push_back(comm.barrier_async());
    }
    for (Work& work : works) work.wait();
    for (size_t i = 0; i < kCalls; ++i) {
      const auto value = static_cast<int32_t>(i);
      ASSERT_EQ(3 * value, sums[i]);
      ASSERT_EQ(value, roots[i]);
      for (size_t r = 0; r < 3; ++r) ASSERT_EQ(value + static_cast<int32_t>(r), all[3 * i + r]);
    }
    comm.destroy();
  });
}

// Sizes and places are read before a call returns: their arrays need not outlive it.
TEST_P(Async, PerRankSizesAreReadAtOnce) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const auto me = static_cast<size_t>(rank.rank());
    std::vector<int32_t> mine(9, rank.rank());
    std::vector<int32_t> gathered(9, -1);
    std::vector<int32_t> exchanged(9, -1);
    int32_t sums[3] = {-1, -1, -1};
    std::vector<Work> works;
    if (me == 0) rank.meet();  // the others' calls wait for this rank
    {
      std::vector<size_t> counts = {1, 2, 3};
      std::vector<size_t> offsets = {6, 3, 0};
      std::vector<size_t> sent(3, me + 1);
      works.push_back(
          comm.all_gather_v_async(mine.data(), gathered.data(), counts, offsets, zbcclInt32));
      works.push_back(comm.reduce_scatter_v_async(mine.data(), sums, counts, zbcclInt32, zbcclSum));
      works.push_back(comm.all_to_all_v_async(mine.data(), sent, Sizes(), exchanged.data(), counts,
                                              offsets, zbcclInt32));
      for (auto* array : {&counts, &offsets, &sent}) array->assign(3, 12345);
    }
    if (me != 0) rank.meet();
    for (Work& work : works) work.wait();
    const std::vector<int32_t> want = {2, 2, 2, 1, 1, -1, 0, -1, -1};
    EXPECT_EQ(want, gathered);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(i <= me ? 3 : -1, sums[i]);
    EXPECT_EQ(want, exchanged);
    comm.destroy();
  });
}

TEST_P(Async, BlockingCallsComeAfterTheOnesStarted) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    for (int round = 0; round < 30; ++round) {
      Buffer<float> x(3000);
      std::fill(x.begin(), x.end(), 1.0f);
      Work work = comm.all_reduce_async(x.data(), x.data(), x.size(), zbcclFloat32);
      comm.all_reduce(x.span());
      EXPECT_TRUE(work.test());
      EXPECT_EQ(9.0f, x[2999]);
      comm.barrier();
    }
    comm.destroy();
  });
}

TEST_P(Async, WorkMayBeFreedBeforeItIsDone) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    std::vector<float> x(100, 1.0f);
    for (int i = 0; i < 10; ++i) {
      const Work dropped =
          comm.all_reduce_async(x.data(), x.data(), x.size(), zbcclFloat32, zbcclMax);
    }
    comm.all_reduce(std::span<float>(x));
    EXPECT_EQ(3.0f, x[0]);
    comm.destroy();
  });
}

// A block freed under running work is not given out again until the work has ended.
TEST_P(Async, MemoryMayBeFreedBeforeTheWorkIsDone) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    constexpr size_t kCount = 100000;
    for (int round = 0; round < 10; ++round) {
      Buffer<float> out(kCount);
      Work work;
      {
        Buffer<float> in(kCount);
        std::fill(in.begin(), in.end(), 1.0f + static_cast<float>(round));
        if (rank.rank() == 1) rank.meet();
        work = comm.all_reduce_async(in.data(), out.data(), kCount, zbcclFloat32);
      }
      // Would take the freed block's place if it could.
      Buffer<float> thief(kCount);
      std::fill(thief.begin(), thief.end(), -1.0f);
      if (rank.rank() == 0) rank.meet();
      work.wait();
      for (float value : out) ASSERT_EQ(2.0f + 2.0f * static_cast<float>(round), value);
      for (float value : thief) ASSERT_EQ(-1.0f, value);
    }
    comm.destroy();
  });
}

TEST_P(Async, DestroyWaitsForRunningWork) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Buffer<float> x(50000);
    std::fill(x.begin(), x.end(), 1.0f);
    Work work = comm.all_reduce_async(x.data(), x.data(), x.size(), zbcclFloat32);
    comm.destroy();
    EXPECT_TRUE(work.test());  // a handle outlives its communicator
    EXPECT_EQ(3.0f, x[49999]);
  });
}

TEST_P(Async, AnyThreadMayWait) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    float x = 1;
    Work work = comm.all_reduce_async(&x, &x, 1, zbcclFloat32);
    std::vector<std::thread> waiters;
    for (int i = 0; i < 3; ++i) waiters.emplace_back([&] { work.wait(); });
    for (std::thread& waiter : waiters) waiter.join();
    EXPECT_EQ(2.0f, x);
    comm.destroy();
  });
}

TEST_P(Async, EmptyCallsComplete) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Work work = comm.all_reduce_async(nullptr, nullptr, 0, zbcclFloat32);
    work.wait();
    Work barrier = comm.barrier_async();
    barrier.wait();
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
