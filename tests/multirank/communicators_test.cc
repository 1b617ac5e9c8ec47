// Several communicators: one after another, side by side on two threads, split and split again.
#include <gtest/gtest.h>

#include <thread>

#include "support/connect.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;

// The sum over the ranks of `comm` of each rank's `value`.
int64_t sum(Communicator& comm, int64_t value) {
  int64_t out = 0;
  comm.all_reduce(&value, &out, 1, zbcclInt64);
  return out;
}

class Communicators : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, Communicators,
                         testing::Values(Mode::kThreads, Mode::kProcesses, Mode::kMixed),
                         [](const auto& test) { return mode_name(test.param); });

TEST_P(Communicators, KnowRankAndSize) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    EXPECT_EQ(rank.rank(), comm.rank());
    EXPECT_EQ(rank.size(), comm.size());
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    comm.destroy();
  });
}

TEST_P(Communicators, OneAfterAnother) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    for (int i = 0; i < 8; ++i) {
      Communicator comm = connect(rank);
      EXPECT_EQ(3 + 3 * i, sum(comm, rank.rank() + i));
      comm.destroy();
    }
  });
}

TEST_P(Communicators, ByIdInAnyMode) {
  run_job({.ranks = 4, .mode = GetParam(), .max_start_delay = milliseconds(50)}, [](Rank& rank) {
    Communicator comm = connect(rank, test_config(), Join::kId);
    EXPECT_EQ(6, sum(comm, rank.rank()));
    comm.destroy();
  });
}

TEST_P(Communicators, InterleavedOnOneThread) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator a = connect(rank);
    Communicator b = connect(rank);
    for (int i = 0; i < 50; ++i) {
      EXPECT_EQ(3 + 3 * i, sum(a, rank.rank() + i));
      EXPECT_EQ(3, sum(b, 1));
    }
    a.destroy();
    EXPECT_EQ(3, sum(b, 1));
    b.destroy();
  });
}

TEST_P(Communicators, TwoOnTwoThreadsAtOnce) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Communicator a = connect(rank);
    Communicator b = connect(rank);
    const auto work = [&](Communicator& comm, int64_t factor) {
      Buffer<float> x(10000);
      for (int i = 0; i < 100; ++i) {
        EXPECT_EQ(3 * factor, sum(comm, factor * rank.rank()));
        std::fill(x.begin(), x.end(), static_cast<float>(factor));
        comm.all_reduce(x.span());
        EXPECT_EQ(static_cast<float>(3 * factor), x[9999]);
      }
    };
    std::thread other([&] { work(b, 1000); });
    work(a, 1);
    other.join();
    a.destroy();
    b.destroy();
  });
}

TEST_P(Communicators, SplitByColorAndKey) {
  run_job({.ranks = 6, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const int me = rank.rank();
    Communicator part = comm.split(me % 2, -me);  // the keys reverse the order
    EXPECT_EQ(3, part.size());
    EXPECT_EQ((5 - me) / 2, part.rank());
    EXPECT_EQ(me % 2 == 0 ? 0 + 2 + 4 : 1 + 3 + 5, sum(part, me));
    EXPECT_EQ(15, sum(comm, me));  // the parent goes on
    Communicator same_keys = comm.split(7, 0);
    EXPECT_EQ(me, same_keys.rank());
    same_keys.destroy();
    part.destroy();
    comm.destroy();
  });
}

TEST_P(Communicators, NegativeColorJoinsNone) {
  run_job({.ranks = 4, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Communicator part = comm.split(rank.rank() == 2 ? -1 : 0, 0);
    EXPECT_EQ(rank.rank() != 2, part.valid());
    if (part.valid()) {
      EXPECT_EQ(3, sum(part, 1));
    }
    EXPECT_EQ(4, sum(comm, 1));
    Communicator none = comm.split(-1, 0);
    EXPECT_FALSE(none.valid());
    comm.barrier();
    comm.destroy();
  });
}

TEST_P(Communicators, SplitOfASplitOutlivesItsParents) {
  run_job({.ranks = 8, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const int me = rank.rank();
    Communicator half = comm.split(me / 4, me);
    Communicator quarter = half.split(half.rank() / 2, 0);
    EXPECT_EQ(2, quarter.size());
    comm.destroy();
    EXPECT_EQ(4, sum(half, 1));
    half.destroy();
    EXPECT_EQ(me / 2 * 4 + 1, sum(quarter, me));
    Communicator single = quarter.split(quarter.rank(), 0);
    EXPECT_EQ(1, single.size());
    EXPECT_EQ(me, sum(single, me));
    single.destroy();
    quarter.destroy();
    rank.meet();
  });
}

// Once made, a part does not depend on the other ranks of its parent, not even on rank 0.
TEST(CommunicatorSplit, NeedsOnlyItsOwnRanks) {
  for (Mode mode : {Mode::kProcesses, Mode::kMixed}) {
    run_job({.ranks = 6, .mode = mode}, [](Rank& rank) {
      Communicator comm = connect(rank);
      Communicator part = comm.split(rank.rank() < 2 ? 0 : 1, 0);
      comm.destroy();
      if (rank.rank() < 2) return;  // its process ends
      std::this_thread::sleep_for(milliseconds(300));
      Communicator pair = part.split(part.rank() % 2, 0);
      EXPECT_EQ(2, sum(pair, 1));
      pair.destroy();
      EXPECT_EQ(4, sum(part, 1));
      part.destroy();
    });
  }
}

TEST_P(Communicators, SplitPartsWorkAtTheSameTime) {
  run_job({.ranks = 6, .mode = GetParam()}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Communicator part = comm.split(rank.rank() % 3, 0);
    Buffer<float> x(5000);
    for (int i = 0; i < 50; ++i) {
      std::fill(x.begin(), x.end(), 1.0f + static_cast<float>(rank.rank() % 3));
      part.all_reduce(x.span());
      EXPECT_EQ(2.0f * (1.0f + static_cast<float>(rank.rank() % 3)), x[4999]);
    }
    part.destroy();
    comm.destroy();
  });
}

// Registered memory belongs to the process: a communicator made later reaches it too.
TEST_P(Communicators, MemoryServesLaterCommunicators) {
  run_job({.ranks = 3, .mode = GetParam()}, [](Rank& rank) {
    Buffer<float> x(5000);
    for (int i = 0; i < 3; ++i) {
      Communicator comm = connect(rank);
      std::fill(x.begin(), x.end(), 2.0f);
      comm.all_reduce(x.span());
      EXPECT_EQ(6.0f, x[0]);
      EXPECT_EQ(0u, comm.stats().staged_bytes);
      comm.destroy();
    }
  });
}

TEST(CommunicatorStore, LocalStoreServesThreads) {
  run_job({.ranks = 1}, [](Rank&) {
    const Store store = Store::local();
    std::vector<std::thread> threads;
    for (int r = 0; r < 4; ++r) {
      threads.emplace_back([&, r] {
        const zbcclConfig_t config = test_config();
        for (const char* name : {"first", "second"}) {
          Communicator comm = Communicator::from_store(4, r, store, name, &config);
          EXPECT_EQ(6, sum(comm, r));
          comm.destroy();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
}

TEST(CommunicatorEnvironment, WithoutAnyIsOneRank) {
  run_job({.ranks = 1}, [](Rank&) {
    for (const char* name : {"RANK", "WORLD_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK",
                             "PMI_RANK", "ZBCCL_RANK", "ZBCCL_WORLD_SIZE", "ZBCCL_UNIQUE_ID"}) {
      ::unsetenv(name);
    }
    Communicator comm = Communicator::from_environment();
    EXPECT_EQ(1, comm.size());
    EXPECT_EQ(5, sum(comm, 5));
    comm.destroy();
  });
}

TEST(CommunicatorEnvironment, ReadsOwnVariables) {
  run_job({.ranks = 3}, [](Rank& rank) {
    zbcclUniqueId id;
    if (rank.rank() == 0) {
      check(zbcclGetUniqueId(&id));
      rank.board().put_blob(0, &id, sizeof id);
    }
    ASSERT_TRUE(rank.board().get_blob(0, &id, sizeof id, std::chrono::seconds(30)));
    char text[192];
    check(zbcclUniqueIdToString(&id, text, sizeof text));
    ::setenv("ZBCCL_UNIQUE_ID", text, 1);
    ::setenv("ZBCCL_WORLD_SIZE", "3", 1);
    ::setenv("ZBCCL_RANK", std::to_string(rank.rank()).c_str(), 1);
    Communicator comm = Communicator::from_environment();
    EXPECT_EQ(rank.rank(), comm.rank());
    EXPECT_EQ(3, sum(comm, 1));
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
