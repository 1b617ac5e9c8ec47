// Calls between zbcclGroupStart and zbcclGroupEnd: all at once, several communicators on one
// thread, nested, refused, cancelled.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "multirank/collective_case.h"
#include "support/connect.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

std::vector<float> filled(size_t count, uint64_t seed) {
  std::vector<float> values(count);
  fill(values.data(), count, zbcclFloat32, Fill::kRandom, seed);
  return values;
}

std::vector<Communicator> in_process(int ranks) {
  const zbcclConfig_t config = test_config();
  return Communicator::in_process(ranks, &config);
}

class Groups : public testing::TestWithParam<std::tuple<Mode, int>> {};
INSTANTIATE_TEST_SUITE_P(Ranks, Groups,
                         testing::Combine(testing::Values(Mode::kThreads, Mode::kProcesses),
                                          testing::Values(1, 2, 3, 5, 8)),
                         [](const auto& test) {
                           return std::string(mode_name(std::get<0>(test.param))) +
                                  std::to_string(std::get<1>(test.param));
                         });

// Every rank sends first: outside a group that is a deadlock.
TEST_P(Groups, RingOfBlockingSends) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const int n = rank.size();
    const int next = (rank.rank() + 1) % n;
    const int previous = (rank.rank() + n - 1) % n;
    for (size_t count : {0, 1, 5000, 300000}) {
      const auto mine = filled(count, static_cast<uint64_t>(rank.rank()));
      std::vector<float> got(count, -1.0f);
      Group group;
      comm.send(std::span<const float>(mine), next);
      comm.recv(std::span<float>(got), previous);
      EXPECT_TRUE(std::all_of(got.begin(), got.end(), [](float x) { return x == -1.0f; }));
      group.finish();
      EXPECT_EQ(filled(count, static_cast<uint64_t>(previous)), got);
    }
    EXPECT_EQ(8u, comm.stats().operations);
    comm.destroy();
  });
}

// An all_to_all made of sends and receives, the own rank included, in an order of each rank's own.
TEST_P(Groups, AllPairsAtOnce) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const int n = rank.size();
    const auto seed = [](int from, int to) { return static_cast<uint64_t>(100 * from + to); };
    for (int round = 0; round < 5; ++round) {
      const auto size = [&](int from, int to) {
        return seed_of(seed(from, to), static_cast<uint64_t>(round)) % 3000;
      };
      std::vector<std::vector<float>> out(static_cast<size_t>(n));
      std::vector<std::vector<float>> in(static_cast<size_t>(n));
      Group group;
      for (int i = 0; i < n; ++i) {
        const int peer = (i + rank.rank() * round) % n;
        auto& sent = out[static_cast<size_t>(peer)];
        auto& got = in[static_cast<size_t>(peer)];
        sent = filled(size(rank.rank(), peer), seed(rank.rank(), peer));
        got.assign(size(peer, rank.rank()), -1.0f);
        comm.recv(std::span<float>(got), peer);
        comm.send(std::span<const float>(sent), peer);
      }
      group.finish();
      for (int peer = 0; peer < n; ++peer) {
        EXPECT_EQ(filled(size(peer, rank.rank()), seed(peer, rank.rank())),
                  in[static_cast<size_t>(peer)]);
      }
    }
    comm.destroy();
  });
}

TEST_P(Groups, CollectivesKeepTheirOrder) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Buffer<int64_t> x(100);
    std::fill(x.begin(), x.end(), 1);
    Group group;
    for (int i = 0; i < 6; ++i) comm.all_reduce(x.span());
    comm.barrier();
    comm.broadcast(x.span(), 0);
    EXPECT_EQ(1, x[0]);
    group.finish();
    int64_t want = 1;
    for (int i = 0; i < 6; ++i) want *= rank.size();
    EXPECT_EQ(want, x[0]);
    EXPECT_EQ(want, x[99]);
    comm.destroy();
  });
}

TEST_P(Groups, SendsBesideCollectives) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const int n = rank.size();
    for (int round = 0; round < 20; ++round) {
      int32_t mine = 10 * rank.rank() + round;
      int32_t got = -1;
      int32_t sum = 1;
      std::vector<int32_t> all(static_cast<size_t>(n));
      Group group;
      comm.recv(&got, 1, zbcclInt32, (rank.rank() + n - 1) % n);
      comm.all_reduce(&sum, &sum, 1, zbcclInt32);
      comm.send(&mine, 1, zbcclInt32, (rank.rank() + 1) % n);
      comm.all_gather(&mine, all.data(), 1, zbcclInt32);
      group.finish();
      EXPECT_EQ(10 * ((rank.rank() + n - 1) % n) + round, got);
      EXPECT_EQ(n, sum);
      for (int r = 0; r < n; ++r) EXPECT_EQ(10 * r + round, all[static_cast<size_t>(r)]);
    }
    comm.destroy();
  });
}

// The handles are valid inside the group, and not done before its end.
TEST_P(Groups, AsynchronousCallsCompleteAfterTheEnd) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const int n = rank.size();
    int32_t sum = 1;
    int32_t mine = rank.rank();
    int32_t got = -1;
    Group group;
    Work reduced = comm.all_reduce_async(&sum, &sum, 1, zbcclInt32);
    Work received = comm.recv_async(&got, 1, zbcclInt32, (rank.rank() + n - 1) % n);
    comm.send(&mine, 1, zbcclInt32, (rank.rank() + 1) % n);
    EXPECT_FALSE(reduced.test());
    EXPECT_FALSE(received.test());
    { const Work dropped = comm.barrier_async(); }
    group.finish();
    reduced.wait();
    received.wait();
    EXPECT_EQ(n, sum);
    EXPECT_EQ((rank.rank() + n - 1) % n, got);
    comm.destroy();
  });
}

TEST_P(Groups, NestAndMayBeEmpty) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode}, [](Rank& rank) {
    Communicator comm = connect(rank);
    int32_t x = 1;
    {
      Group empty;
      empty.finish();
    }
    Group outer;
    comm.all_reduce(&x, &x, 1, zbcclInt32);
    {
      Group inner;
      comm.all_reduce(&x, &x, 1, zbcclInt32);
      inner.finish();
    }
    EXPECT_EQ(1, x);
    outer.finish();
    EXPECT_EQ(rank.size() * rank.size(), x);
    expect_error(zbcclInvalidUsage, zbcclGroupEnd(), {"zbcclGroupStart"});
    comm.destroy();
  });
}

// A mismatch inside a group is found as it is outside.
TEST_P(Groups, ReportMismatches) {
  const auto [mode, ranks] = GetParam();
  if (ranks == 1) return;
  run_job({.ranks = ranks, .mode = mode}, [](Rank& rank) {
    Communicator comm = connect(rank);
    std::vector<float> x(10, 1.0f);
    const bool odd = rank.rank() == 1;
    check(zbcclGroupStart());
    EXPECT_EQ(zbcclSuccess, zbcclAllReduce(x.data(), x.data(), odd ? 9 : 10, zbcclFloat32, zbcclSum,
                                           comm.get(), nullptr));
    expect_error(zbcclInvalidUsage, zbcclGroupEnd(), {"rank 1", "9", "10"});
    EXPECT_EQ(1.0f, x[0]);
    comm.all_reduce(std::span<float>(x));
    EXPECT_EQ(static_cast<float>(rank.size()), x[9]);
    comm.destroy();
  });
}

// ---- one thread for all ranks

class OneThread : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, OneThread, testing::Values(1, 2, 4, 8));

TEST_P(OneThread, DrivesSeveralCommunicators) {
  run_job({.ranks = 1}, [n = GetParam()](Rank&) {
    std::vector<Communicator> comms = in_process(n);
    const auto ranks = static_cast<size_t>(n);
    for (size_t count : {1, 1000, 200000}) {
      std::vector<Buffer<float>> x;
      std::vector<std::vector<float>> gathered(ranks, std::vector<float>(count * ranks, -1.0f));
      for (size_t r = 0; r < ranks; ++r) {
        x.emplace_back(count);
        std::fill(x[r].begin(), x[r].end(), static_cast<float>(r + 1));
      }
      Group group;
      for (size_t r = 0; r < ranks; ++r) {
        comms[r].all_gather(x[r].data(), gathered[r].data(), count, zbcclFloat32);
        comms[r].all_reduce(x[r].span());
      }
      group.finish();
      const auto sum = static_cast<float>(ranks * (ranks + 1) / 2);
      for (size_t r = 0; r < ranks; ++r) {
        EXPECT_EQ(sum, x[r][0]);
        EXPECT_EQ(sum, x[r][count - 1]);
        for (size_t s = 0; s < ranks; ++s) {
          EXPECT_EQ(static_cast<float>(s + 1), gathered[r][s * count]);
        }
      }
    }
    for (Communicator& comm : comms) comm.destroy();
  });
}

TEST_P(OneThread, SendsFromEachToEach) {
  run_job({.ranks = 1}, [n = GetParam()](Rank&) {
    std::vector<Communicator> comms = in_process(n);
    const auto ranks = static_cast<size_t>(n);
    std::vector<size_t> out(ranks * ranks);
    std::vector<size_t> in(ranks * ranks);
    Group group;
    for (size_t r = 0; r < ranks; ++r) {
      for (size_t peer = 0; peer < ranks; ++peer) {
        out[r * ranks + peer] = 100 * r + peer;
        comms[r].send(&out[r * ranks + peer], 1, zbcclUint64, static_cast<int>(peer));
        comms[r].recv(&in[r * ranks + peer], 1, zbcclUint64, static_cast<int>(peer));
      }
    }
    group.finish();
    for (size_t r = 0; r < ranks; ++r) {
      for (size_t peer = 0; peer < ranks; ++peer) {
        EXPECT_EQ(100 * peer + r, in[r * ranks + peer]);
      }
    }
    for (Communicator& comm : comms) comm.destroy();
  });
}

TEST_P(OneThread, InitialisesAllRanks) {
  run_job({.ranks = 1}, [n = GetParam()](Rank&) {
    const zbcclConfig_t config = test_config();
    zbcclUniqueId id;
    check(zbcclGetUniqueId(&id));
    std::vector<zbcclComm_t> comms(static_cast<size_t>(n), nullptr);
    check(zbcclGroupStart());
    for (int r = 0; r < n; ++r) {
      check(zbcclCommInitRank(&comms[static_cast<size_t>(r)], n, id, r, &config));
      EXPECT_EQ(nullptr, comms[static_cast<size_t>(r)]);
    }
    check(zbcclGroupEnd());
    std::vector<float> x(static_cast<size_t>(n), 1.0f);
    check(zbcclGroupStart());
    for (size_t r = 0; r < x.size(); ++r) {
      check(zbcclAllReduce(&x[r], &x[r], 1, zbcclFloat32, zbcclSum, comms[r], nullptr));
    }
    check(zbcclGroupEnd());
    for (float value : x) EXPECT_EQ(static_cast<float>(n), value);
    for (zbcclComm_t comm : comms) check(zbcclCommDestroy(comm));
  });
}

// Two communicators over the same ranks, called in opposite orders.
TEST(GroupOrder, OfDifferentCommunicatorsDoesNotMatter) {
  run_job({.ranks = 2, .mode = Mode::kProcesses}, [](Rank& rank) {
    Communicator a = connect(rank);
    Communicator b = connect(rank);
    for (int i = 0; i < 20; ++i) {
      int32_t x = 1;
      int32_t y = 10;
      Group group;
      if (rank.rank() == 0) a.all_reduce(&x, &x, 1, zbcclInt32);
      b.all_reduce(&y, &y, 1, zbcclInt32);
      if (rank.rank() == 1) a.all_reduce(&x, &x, 1, zbcclInt32);
      group.finish();
      EXPECT_EQ(2, x);
      EXPECT_EQ(20, y);
    }
    a.destroy();
    b.destroy();
  });
}

// ---- groups that are not made

// One call is refused: none starts, not even those before it, and all works end.
void expect_refused(Communicator& comm, const std::function<zbcclResult_t()>& bad) {
  float x = 1;
  zbcclWork_t work = nullptr;
  zbcclCall_t how = ZBCCL_CALL_INITIALIZER;
  how.work = &work;
  check(zbcclGroupStart());
  check(zbcclAllReduce(&x, &x, 1, zbcclFloat32, zbcclSum, comm.get(), &how));
  EXPECT_EQ(zbcclInvalidArgument, bad()) << zbcclGetLastError();
  check(zbcclAllReduce(&x, &x, 1, zbcclFloat32, zbcclSum, comm.get(), nullptr));
  expect_error(zbcclInvalidUsage, zbcclGroupEnd(), {"refused", "nothing"});
  expect_error(zbcclInvalidUsage, zbcclWorkWait(work, 1000));
  check(zbcclWorkFree(work));
  EXPECT_EQ(1.0f, x);
}

TEST(GroupRefusal, LeavesEverythingUndone) {
  run_job({.ranks = 2, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    zbcclComm_t c = comm.get();
    float x[4] = {};
    const size_t counts[2] = {1, 1};
    zbcclUniqueId id = {};
    zbcclComm_t made = nullptr;
    zbcclCall_t how = ZBCCL_CALL_INITIALIZER;
    how.size = 1;
    const std::vector<std::function<zbcclResult_t()>> bad = {
        [&] { return zbcclAllReduce(nullptr, x, 1, zbcclFloat32, zbcclSum, c, nullptr); },
        [&] { return zbcclAllReduce(x, x, 1, zbcclFloat32, zbcclSum, nullptr, nullptr); },
        [&] { return zbcclAllReduce(x, x, 1, zbcclFloat32, zbcclSum, c, &how); },
        [&] { return zbcclBroadcast(x, x, 1, zbcclFloat32, 5, c, nullptr); },
        [&] { return zbcclSend(x, 1, zbcclFloat32, 7, c, nullptr); },
        [&] { return zbcclAllGatherV(x, x, nullptr, nullptr, zbcclFloat32, c, nullptr); },
        [&] { return zbcclAllGatherV(x, x, counts, nullptr, zbcclFloat32, nullptr, nullptr); },
        [&] { return zbcclCommInitRank(&made, 0, id, 0, nullptr); },
        [&] { return zbcclCommInitRank(nullptr, 1, id, 0, nullptr); },
    };
    for (size_t i = 0; i < bad.size(); ++i) {
      SCOPED_TRACE(i);
      expect_refused(comm, bad[i]);
    }
    EXPECT_EQ(nullptr, made);
    float one = 1;
    comm.all_reduce(&one, &one, 1, zbcclFloat32);
    EXPECT_EQ(2.0f, one);
    comm.destroy();
  });
}

// The others of the group are left undone as well.
TEST(GroupRefusal, OfADestroyedCommunicator) {
  run_job({.ranks = 1}, [](Rank&) {
    std::vector<Communicator> comms = in_process(2);
    Communicator other = std::move(in_process(1)[0]);
    float x = 1;
    float y = 1;
    zbcclWork_t work = nullptr;
    zbcclCall_t how = ZBCCL_CALL_INITIALIZER;
    how.work = &work;
    check(zbcclGroupStart());
    check(zbcclAllReduce(&x, &x, 1, zbcclFloat32, zbcclSum, comms[0].get(), &how));
    check(zbcclAllReduce(&y, &y, 1, zbcclFloat32, zbcclSum, other.get(), nullptr));
    comms.clear();
    expect_error(zbcclInvalidUsage, zbcclGroupEnd(), {"destroyed"});
    expect_error(zbcclInvalidUsage, zbcclWorkWait(work, 1000), {"destroyed"});
    check(zbcclWorkFree(work));
    other.all_reduce(&y, &y, 1, zbcclFloat32);
    other.destroy();
  });
}

TEST(GroupCancel, LeavesEverythingUndone) {
  run_job({.ranks = 2, .mode = Mode::kProcesses}, [](Rank& rank) {
    Communicator comm = connect(rank);
    float x = 1;
    float got = -1;
    Work work;
    try {
      Group outer;
      comm.all_reduce(&x, &x, 1, zbcclFloat32);
      Group inner;
      work = comm.recv_async(&got, 1, zbcclFloat32, 1 - rank.rank());
      throw std::runtime_error("user code");
    } catch (const std::runtime_error&) {
    }
    expect_error(zbcclInvalidUsage, zbcclGroupEnd());
    try {
      work.wait();
      ADD_FAILURE() << "the call was never made";
    } catch (const Error& error) {
      EXPECT_EQ(zbcclAborted, error.code()) << error.what();
    }
    EXPECT_EQ(zbcclSuccess, zbcclGroupCancel());
    comm.all_reduce(&x, &x, 1, zbcclFloat32);
    EXPECT_EQ(2.0f, x);
    EXPECT_EQ(-1.0f, got);
    EXPECT_EQ(0u, comm.stats().failures);
    comm.destroy();
  });
}

// A thread that ends inside its group takes the group along; whoever holds a handle is told.
TEST(GroupCancel, HappensWhenTheThreadEnds) {
  run_job({.ranks = 1}, [](Rank& rank) {
    Communicator comm = connect(rank);
    float x = 1;
    Work work;
    std::thread([&] {
      check(zbcclGroupStart());
      work = comm.all_reduce_async(&x, &x, 1, zbcclFloat32);
    }).join();
    try {
      work.wait(std::chrono::seconds(5));
      ADD_FAILURE() << "the call was never made";
    } catch (const Error& error) {
      EXPECT_EQ(zbcclAborted, error.code()) << error.what();
    }
    comm.destroy();
  });
}

// Other threads are not part of it.
TEST(GroupScope, IsOneThread) {
  run_job({.ranks = 1}, [](Rank& rank) {
    Communicator a = connect(rank);
    Communicator b = connect(rank);
    float x = 1;
    float y = 1;
    const Group group;
    a.all_reduce_async(&x, &x, 1, zbcclFloat32);
    std::thread([&] {
      b.all_reduce(&y, &y, 1, zbcclFloat32, zbcclSum);
      expect_error(zbcclInvalidUsage, zbcclGroupEnd());
    }).join();
    EXPECT_EQ(1u, b.stats().operations);
    EXPECT_EQ(0u, a.stats().operations);
  });
}

}  // namespace
}  // namespace zbccl::test
