// Groups: one thread that calls for several ranks, several communicators, refusals.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <thread>
#include <vector>

#include "nccl/ranks.h"

namespace zbccl::test {
namespace {

// In a child, since the library must not be used here.
void alone(const std::function<void()>& body) {
  run_job({.ranks = 1}, [&](Rank&) { body(); });
}

void expect_all(const std::vector<std::vector<int64_t>>& outs, int64_t want) {
  for (const auto& out : outs) EXPECT_EQ(std::vector<int64_t>(out.size(), want), out);
}

TEST(OneThread, DrivesAllRanks) {
  alone([] {
    for (const int ranks : {1, 2, 5, 8}) {
      const std::vector<Comm> comms = connect_alone(ranks);
      std::vector<std::vector<int64_t>> outs;
      for (int r = 0; r < ranks; ++r) outs.emplace_back(999, r + 1);
      for (int round = 0; round < 3; ++round) {
        check(ncclGroupStart());
        for (int r = 0; r < ranks; ++r) {
          auto& out = outs[static_cast<size_t>(r)];
          EXPECT_EQ(r, comms[static_cast<size_t>(r)].rank());
          check(ncclAllReduce(out.data(), out.data(), out.size(), ncclInt64, ncclMax,
                              comms[static_cast<size_t>(r)], nullptr));
        }
        check(ncclGroupEnd());
      }
      expect_all(outs, ranks);
    }
  });
}

TEST(OneThread, InitAll) {
  alone([] {
    std::vector<ncclComm_t> handles(4);
    check(ncclCommInitAll(handles.data(), 4, nullptr));
    std::vector<std::vector<int64_t>> outs;
    for (int r = 0; r < 4; ++r) outs.emplace_back(10, r);
    check(ncclGroupStart());
    for (size_t r = 0; r < 4; ++r) {
      check(ncclAllReduce(outs[r].data(), outs[r].data(), 10, ncclInt64, ncclSum, handles[r],
                          nullptr));
    }
    check(ncclGroupEnd());
    expect_all(outs, 6);
    for (ncclComm_t handle : handles) check(ncclCommDestroy(handle));
  });
}

// Collectives of one communicator keep their order in a group, and sends and receives, however
// many, all progress.
TEST(OneThread, SeveralCallsForEach) {
  alone([] {
    constexpr size_t kRanks = 4;
    constexpr size_t kCalls = 6;
    const std::vector<Comm> comms = connect_alone(kRanks);
    std::vector<int64_t> values(kRanks);
    std::iota(values.begin(), values.end(), 1);
    std::vector<std::vector<int64_t>> came(kRanks, std::vector<int64_t>(kCalls, -1));
    std::vector<std::vector<int64_t>> sent(kRanks);
    check(ncclGroupStart());
    for (size_t r = 0; r < kRanks; ++r) {
      for (size_t i = 0; i < kCalls; ++i) {
        check(ncclAllReduce(&values[r], &values[r], 1, ncclInt64, ncclSum, comms[r], nullptr));
      }
    }
    for (size_t r = 0; r < kRanks; ++r) {
      for (size_t i = 0; i < kCalls; ++i) sent[r].push_back(static_cast<int64_t>(100 * r + i));
      const int next = static_cast<int>((r + 1) % kRanks);
      const int previous = static_cast<int>((r + kRanks - 1) % kRanks);
      for (size_t i = 0; i < kCalls; ++i) {
        check(ncclSend(&sent[r][i], 1, ncclInt64, next, comms[r], nullptr));
        check(ncclRecv(&came[r][i], 1, ncclInt64, previous, comms[r], nullptr));
      }
    }
    check(ncclGroupEnd());
    // 10, then four times as much with each call.
    EXPECT_EQ(std::vector<int64_t>(kRanks, 10 * 4 * 4 * 4 * 4 * 4), values);
    for (size_t r = 0; r < kRanks; ++r) EXPECT_EQ(sent[(r + kRanks - 1) % kRanks], came[r]);
  });
}

TEST(OneThread, Splits) {
  alone([] {
    const std::vector<Comm> comms = connect_alone(4);
    std::vector<ncclComm_t> parts(4, nullptr);
    check(ncclGroupStart());
    for (int r = 0; r < 4; ++r) {
      const auto i = static_cast<size_t>(r);
      check(ncclCommSplit(comms[i], r == 3 ? NCCL_SPLIT_NOCOLOR : r % 2, -r, &parts[i], nullptr));
    }
    check(ncclGroupEnd());
    EXPECT_EQ(nullptr, parts[3]);
    const Comm even0(parts[0]);
    const Comm odd(parts[1]);
    const Comm even2(parts[2]);
    EXPECT_EQ(2, even0.size());
    EXPECT_EQ(1, even0.rank());  // by key
    EXPECT_EQ(0, even2.rank());
    EXPECT_EQ(1, odd.size());
  });
}

TEST(Groups, Nest) {
  run_job({.ranks = 2}, [](Rank& rank) {
    const Comm comm = connect(rank);
    std::vector<int64_t> out(1, rank.rank() + 1);
    check(ncclGroupStart());
    check(ncclGroupStart());
    check(ncclAllReduce(out.data(), out.data(), 1, ncclInt64, ncclSum, comm, nullptr));
    check(ncclGroupEnd());
    EXPECT_EQ(rank.rank() + 1, out[0]);
    check(ncclGroupEnd());
    EXPECT_EQ(3, out[0]);
  });
}

TEST(Groups, OfTwoCommunicators) {
  run_job({.ranks = 3}, [](Rank& rank) {
    const Comm first = connect(rank);
    const Comm second = connect(rank);
    int64_t a = rank.rank();
    int64_t b = 10 * rank.rank();
    int64_t from = -1;
    check(ncclGroupStart());
    // In another order on each rank.
    for (int i = 0; i < 2; ++i) {
      const bool now_first = (rank.rank() + i) % 2 == 0;
      int64_t& value = now_first ? a : b;
      check(ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, now_first ? first : second,
                          nullptr));
    }
    const int64_t mine = rank.rank();
    check(ncclSend(&mine, 1, ncclInt64, (rank.rank() + 1) % 3, second, nullptr));
    check(ncclRecv(&from, 1, ncclInt64, (rank.rank() + 2) % 3, second, nullptr));
    check(ncclGroupEnd());
    EXPECT_EQ(3, a);
    EXPECT_EQ(30, b);
    EXPECT_EQ((rank.rank() + 2) % 3, from);
  });
}

TEST(Groups, ARefusedCallLeavesAllUndone) {
  run_job({.ranks = 2}, [](Rank& rank) {
    const Comm comm = connect(rank);
    std::vector<int64_t> out(4, 7);
    check(ncclGroupStart());
    check(ncclAllReduce(out.data(), out.data(), 4, ncclInt64, ncclSum, comm, nullptr));
    expect_refused(ncclInvalidArgument,
                   ncclAllReduce(out.data(), out.data(), 4, ncclNumTypes, ncclSum, comm, nullptr),
                   {"element type"});
    expect_refused(ncclInvalidArgument, ncclGroupEnd(), {"element type"});
    EXPECT_EQ(std::vector<int64_t>(4, 7), out);
    expect_refused(ncclInvalidUsage, ncclGroupEnd(), {"without"});
    expect_sum(comm, rank.rank(), rank.size());
  });
}

TEST(Groups, ADestroyedCommunicatorIsNoticed) {
  run_job({.ranks = 2}, [](Rank& rank) {
    const Comm other = connect(rank);
    Comm comm = connect(rank);
    int64_t value = 1;
    check(ncclGroupStart());
    check(ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, comm, nullptr));
    check(ncclCommDestroy(comm.release()));
    expect_refused(ncclInvalidUsage, ncclGroupEnd(), {"destroyed"});
    expect_sum(other, rank.rank(), rank.size());
  });
}

TEST(Groups, AreNotSimulated) {
  run_job({.ranks = 1}, [](Rank& rank) {
    const Comm comm = connect(rank);
    ncclSimInfo_t info = {sizeof info, 0x74685283, NCCL_VERSION_CODE, -1.0F};
    check(ncclGroupStart());
    expect_refused(ncclInvalidUsage, ncclGroupSimulateEnd(&info), {"estimate"});
    expect_refused(ncclInvalidUsage, ncclGroupEnd(), {"without"});
    expect_sum(comm, 0, 1);
  });
}

// Each thread has its own.
TEST(Groups, OfTwoThreads) {
  run_job({.ranks = 2, .mode = Mode::kThreads}, [](Rank& rank) {
    const Comm comm = connect(rank);
    if (rank.rank() == 0) check(ncclGroupStart());
    int64_t value = rank.rank() + 1;
    check(ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, comm, nullptr));
    if (rank.rank() == 0) check(ncclGroupEnd());
    EXPECT_EQ(3, value);
  });
}

}  // namespace
}  // namespace zbccl::test
