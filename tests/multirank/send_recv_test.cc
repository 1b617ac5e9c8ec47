// Point to point: pairs, rings, both directions at once, order, and sizes from nothing to large.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "support/connect.h"
#include "support/data.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;

class SendRecv : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, SendRecv,
                         testing::Values(Mode::kThreads, Mode::kProcesses, Mode::kMixed),
                         [](const auto& test) { return mode_name(test.param); });

TEST_P(SendRecv, PingPong) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    for (int i = 0; i < 200; ++i) {
      int32_t value = i;
      if (rank.rank() == 0) {
        comm.send(&value, 1, zbcclInt32, 1);
        comm.recv(&value, 1, zbcclInt32, 1);
        ASSERT_EQ(i + 1, value);
      } else {
        comm.recv(&value, 1, zbcclInt32, 0);
        ++value;
        comm.send(&value, 1, zbcclInt32, 0);
      }
    }
    comm.destroy();
  });
}

// Both sides send first: with handles that is no deadlock, whatever the size.
TEST_P(SendRecv, BothDirectionsAtOnce) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const int peer = 1 - rank.rank();
    for (size_t count : {0, 1, 1000, 1 << 20}) {
      Buffer<float> out(count + 1);
      std::vector<float> in(count + 1, -1.0f);
      for (int i = 0; i < 4; ++i) {
        std::fill(out.begin(), out.end(), static_cast<float>(10 * i + rank.rank()));
        Work sent = comm.send_async(out.data(), count, zbcclFloat32, peer);
        Work received = comm.recv_async(in.data(), count, zbcclFloat32, peer);
        sent.wait();
        received.wait();
        for (size_t k = 0; k < count; ++k) ASSERT_EQ(static_cast<float>(10 * i + peer), in[k]);
        ASSERT_EQ(-1.0f, in[count]);
      }
    }
    comm.destroy();
  });
}

TEST_P(SendRecv, MessagesOfOnePairKeepTheirOrder) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    constexpr int kMessages = 100;
    if (rank.rank() == 0) {
      std::vector<int32_t> values(2 * kMessages);
      std::vector<Work> works;
      for (int i = 0; i < kMessages; ++i) {
        for (int peer : {1, 2}) {
          int32_t& value = values[static_cast<size_t>(2 * i + peer - 1)];
          value = 1000 * peer + i;
          works.push_back(comm.send_async(&value, 1, zbcclInt32, peer));
        }
      }
      for (Work& work : works) work.wait();
    } else {
      for (int i = 0; i < kMessages; ++i) {
        int32_t value = -1;
        comm.recv(&value, 1, zbcclInt32, 0);
        ASSERT_EQ(1000 * rank.rank() + i, value);
      }
    }
    comm.destroy();
  });
}

// Asked for in another order than they are sent, with blocking calls on one side.
TEST_P(SendRecv, TagsFindTheirMessages) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    constexpr int kTags = 7;
    constexpr size_t kCount = 1000;
    for (int round = 0; round < 20; ++round) {
      if (rank.rank() == 0) {
        std::vector<std::vector<int32_t>> values;
        std::vector<Work> works;
        for (int i = 0; i < 2 * kTags; ++i) {
          values.emplace_back(kCount + static_cast<size_t>(i % kTags), 100 * round + i);
          works.push_back(comm.send_async(values.back().data(), values.back().size(), zbcclInt32, 1,
                                          {.tag = i % kTags}));
        }
        for (Work& work : works) work.wait();
      } else {
        // The last tag first, and of each tag the first message first.
        for (int i = 2 * kTags; i-- > 0;) {
          const int tag = i % kTags;
          const size_t count = kCount + static_cast<size_t>(tag);
          std::vector<int32_t> value(count + 1, -1);
          comm.recv(value.data(), count, zbcclInt32, 0, {.tag = tag});
          const int first = i >= kTags ? tag : tag + kTags;
          for (size_t k = 0; k < count; ++k) ASSERT_EQ(100 * round + first, value[k]);
          ASSERT_EQ(-1, value[count]);
        }
      }
    }
    // A message that was put aside is compared as well, by its receiver alone.
    if (rank.rank() == 0) {
      const int32_t value = 1;
      Work early = comm.send_async(&value, 1, zbcclInt32, 1, {.tag = 1});
      comm.send(&value, 1, zbcclInt32, 1);
      early.wait();
    } else {
      int32_t value[2] = {};
      comm.recv(value, 1, zbcclInt32, 0);
      EXPECT_THROW(comm.recv(value, 2, zbcclInt32, 0, {.tag = 1}), Error);
    }
    // In each other's arms: receives are posted before anything comes.
    int32_t out[2] = {10 + rank.rank(), 20 + rank.rank()};
    int32_t in[2] = {-1, -1};
    const int peer = 1 - rank.rank();
    std::vector<Work> works;
    for (int tag : {1, 0}) {
      works.push_back(comm.recv_async(&in[tag], 1, zbcclInt32, peer, {.tag = tag}));
    }
    for (int tag : {0, 1}) {
      works.push_back(comm.send_async(&out[tag], 1, zbcclInt32, peer, {.tag = tag}));
    }
    for (Work& work : works) work.wait();
    EXPECT_EQ(10 + peer, in[0]);
    EXPECT_EQ(20 + peer, in[1]);
    EXPECT_THROW(comm.send(out, 1, zbcclInt32, peer, {.tag = -1}), Error);
    comm.destroy();
  });
}

// A tag that nobody sends: the deadline names it.
TEST_P(SendRecv, MissingTagIsNamed) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    int32_t value = 7;
    if (rank.rank() == 0) {
      comm.send(&value, 1, zbcclInt32, 1, {.tag = 3});
      rank.meet();
    } else {
      try {
        comm.recv(&value, 1, zbcclInt32, 0, {.timeout = milliseconds(300), .tag = 4});
        FAIL() << "received something";
      } catch (const Error& error) {
        EXPECT_EQ(zbcclTimeout, error.code());
        EXPECT_NE(nullptr, strstr(error.what(), "tag 4")) << error.what();
      }
      rank.meet();
    }
  });
}

TEST_P(SendRecv, EveryRankToEveryRank) {
  run_job({.ranks = 5, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const auto me = static_cast<uint64_t>(rank.rank());
    constexpr size_t kCount = 2000;
    const auto n = static_cast<size_t>(rank.size());
    std::vector<std::vector<float>> out(n);
    std::vector<std::vector<float>> in(n);
    for (int round = 0; round < 5; ++round) {
      std::vector<Work> works;
      for (size_t peer = 0; peer < n; ++peer) {
        if (peer == me) continue;
        out[peer].resize(kCount);
        in[peer].assign(kCount, -1.0f);
        fill(out[peer].data(), kCount, zbcclFloat32, Fill::kRandom, seed_of(me, peer));
        const int p = static_cast<int>(peer);
        works.push_back(comm.send_async(out[peer].data(), kCount, zbcclFloat32, p));
        works.push_back(comm.recv_async(in[peer].data(), kCount, zbcclFloat32, p));
      }
      for (Work& work : works) work.wait();
      for (size_t peer = 0; peer < n; ++peer) {
        if (peer == me) continue;
        std::vector<float> want(kCount);
        fill(want.data(), kCount, zbcclFloat32, Fill::kRandom, seed_of(peer, me));
        ASSERT_EQ(0u, compare(want.data(), in[peer].data(), kCount, zbcclFloat32).count);
      }
    }
    comm.destroy();
  });
}

// A pair exchanges while the others, and then the pair too, run collectives.
TEST_P(SendRecv, BesideCollectives) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    for (int i = 0; i < 20; ++i) {
      int32_t value = i;
      int32_t other = -1;
      Work sent;
      Work received;
      if (rank.rank() < 2) {
        received = comm.recv_async(&other, 1, zbcclInt32, 1 - rank.rank());
      }
      int32_t one = 1;
      comm.all_reduce(&one, &one, 1, zbcclInt32);
      EXPECT_EQ(3, one);
      if (rank.rank() < 2) {
        EXPECT_FALSE(received.test());
        comm.barrier();  // both looked
        sent = comm.send_async(&value, 1, zbcclInt32, 1 - rank.rank());
        received.wait();
        sent.wait();
        EXPECT_EQ(i, other);
      } else {
        comm.barrier();
      }
    }
    comm.destroy();
  });
}

// The sender may be early or late by far.
TEST_P(SendRecv, EitherSideMayWait) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    for (int late : {0, 1}) {
      if (rank.rank() == late) std::this_thread::sleep_for(milliseconds(50));
      std::vector<float> x(50000, static_cast<float>(rank.rank()));
      if (rank.rank() == 0) {
        comm.send(std::span<const float>(x), 1);
      } else {
        comm.recv(std::span<float>(x), 0);
        EXPECT_EQ(0.0f, x[49999]);
      }
    }
    comm.destroy();
  });
}

// A send returns when the peer has the data: the buffer is the caller's again.
TEST_P(SendRecv, TheBufferIsFreeAfterSend) {
  run_job({.ranks = 2, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    for (bool use_registered : {true, false}) {
      Guarded block = use_registered ? registered(400000) : Guarded::plain(400000);
      for (int i = 0; i < 10; ++i) {
        if (rank.rank() == 0) {
          std::fill(block.data(), block.data() + block.size(), std::byte(i));
          comm.send(block.data(), block.size(), zbcclUint8, 1);
          block.poison();
        } else {
          comm.recv(block.data(), block.size(), zbcclUint8, 0);
          EXPECT_TRUE(std::all_of(block.data(), block.data() + block.size(),
                                  [&](std::byte b) { return b == std::byte(i); }));
        }
      }
      EXPECT_EQ("", block.damage());
    }
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
