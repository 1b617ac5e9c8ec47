// GPU memory shared between processes and between ranks of one process, on a driver made of host
// memory: what one process writes through its table is what the owner finds.
#include <thread>

#include "cuda_share_node.h"

namespace zbccl::cuda {
namespace {

class DeviceShare : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    if (test::thread_sanitized() && GetParam() != Mode::kThreads) {
      GTEST_SKIP() << "the thread sanitizer does not see what orders two processes";
    }
  }
  static JobOptions job(int ranks) {
    JobOptions options;
    options.ranks = ranks;
    options.mode = GetParam();
    return options;
  }
};
INSTANTIATE_TEST_SUITE_P(Modes, DeviceShare,
                         testing::Values(Mode::kProcesses, Mode::kThreads, Mode::kMixed),
                         [](const auto& item) { return test::mode_name(item.param); });

TEST_P(DeviceShare, EveryRankReachesEveryOther) {
  run_job(job(4), [](Rank& rank) {
    Node node(rank);
    node.open();
    std::byte* block = node.take(4096 * 8);
    require(node.pool->share(0, node.peers, soon()));
    node.write_all(block, 4096);
  });
}

TEST_P(DeviceShare, FollowsThePoolAsItGrows) {
  run_job(job(4), [](Rank& rank) {
    Node node(rank);
    node.open();
    require(node.pool->share(0, node.peers, soon()));
    std::vector<std::byte*> blocks;
    for (int step = 0; step < 5; ++step) {
      // Unequal sizes, and memory that is freed and used again.
      blocks.push_back(node.take((static_cast<size_t>(step + rank.rank()) % 4 + 1) * kMiB));
      require(node.pool->share(0, node.peers, soon()));
      node.write_all(blocks.back(), 1024);
      if (step == 2) {
        require(node.pool->free(blocks.front()));
        blocks.erase(blocks.begin());
      }
    }
    for (std::byte* block : blocks) node.write_all(block, 512);
  });
}

// Chunks that a peer has mapped are never unmapped, however much is free.
TEST_P(DeviceShare, KeepsWhatPeersHaveMapped) {
  JobOptions options = job(2);
  options.env = {{"ZBCCL_POOL_KEEP", "0"}};
  run_job(options, [](Rank& rank) {
    Node node(rank);
    node.open();
    std::byte* block = node.take(8 * kMiB);
    require(node.pool->share(0, node.peers, soon()));
    rank.meet();
    const size_t before = fake::taken(node.device());
    require(node.pool->free(block));
    (void)wait_for_janitor(soon());
    if (rank.mode() == Mode::kProcesses) {
      EXPECT_EQ(fake::taken(node.device()), before);
      EXPECT_EQ(node.pool->report().held, before);
    }
    EXPECT_EQ(node.take(8 * kMiB), block);
    require(node.pool->share(0, node.peers, soon()));
    node.write_all(block, 4096);
  });
}

TEST_P(DeviceShare, SharesRegisteredMemory) {
  run_job(job(4), [](Rank& rank) {
    Node node(rank);
    node.open();
    for (int round = 0; round < 3; ++round) {
      auto* tensor = static_cast<std::byte*>(
          fake::device_malloc(node.device(), static_cast<size_t>(1 + rank.rank()) * kMiB));
      std::byte* part = tensor + 1234 * 16;
      require(node.pool->add_foreign(part, 40'000));
      const Location at = *node.pool->locate(part, 40'000);
      EXPECT_NE(at.segment, 0u);
      EXPECT_EQ(at.offset, 1234u * 16);
      require(node.pool->share(at.segment, node.peers, soon()));
      node.write_all(part, 4000);
      require(node.pool->remove_foreign(part, soon()));
      rank.meet();
      EXPECT_EQ(fake::counts().ipc_opened, 0) << "peers let go before the owner goes on";
      for (int r = 0; r < rank.size(); ++r) {
        EXPECT_EQ(node.remotes[static_cast<size_t>(r)]->base(at.segment), 0u);
      }
      rank.meet();
      fake::device_free(tensor);
    }
  });
}

TEST_P(DeviceShare, SharesMappedMemoryOfOthers) {
  run_job(job(2), [](Rank& rank) {
    Node node(rank);
    node.open();
    // As an expandable segment: a large reservation, some chunks at its start.
    auto* range = static_cast<std::byte*>(fake::reserve(64 * kMiB));
    for (size_t i = 0; i < 3; ++i) {
      fake::map(node.device(), range + i * 4 * kMiB, 4 * kMiB, true);
    }
    std::byte* tensor = range + 3 * kMiB;
    require(node.pool->add_foreign(tensor, 6 * kMiB));
    const Location at = *node.pool->locate(tensor, 6 * kMiB);
    require(node.pool->share(at.segment, node.peers, soon()));
    node.write_all(tensor, 3 * kMiB);
    EXPECT_TRUE(node.pool->still_valid(at));
    // It grows, and a tensor lies in the new part.
    fake::map(node.device(), range + 12 * kMiB, 4 * kMiB, true);
    require(node.pool->add_foreign(range + 11 * kMiB, 5 * kMiB));
    const Location grown = *node.pool->locate(range + 11 * kMiB, 5 * kMiB);
    require(node.pool->share(grown.segment, node.peers, soon()));
    node.write_all(range + 11 * kMiB, 2 * kMiB);
    // The framework takes a chunk away and puts another one there.
    fake::unmap(range + 4 * kMiB, 4 * kMiB);
    const Location gone = *node.pool->locate(range + 5 * kMiB, 1);
    EXPECT_FALSE(node.pool->still_valid(gone));
    fake::map(node.device(), range + 4 * kMiB, 4 * kMiB, true);
    EXPECT_FALSE(node.pool->still_valid(gone));
    require(node.pool->add_foreign(range + 5 * kMiB, kMiB));
    const Location fresh = *node.pool->locate(range + 5 * kMiB, kMiB);
    EXPECT_TRUE(node.pool->still_valid(fresh));
    require(node.pool->share(fresh.segment, node.peers, soon()));
    node.write_all(range + 5 * kMiB, 512);
    // No handle can be exported: said, and nothing is left of it.
    fake::map(node.device(), range + 32 * kMiB, 2 * kMiB, false);
    const Status refused = node.pool->add_foreign(range + 32 * kMiB, kMiB);
    EXPECT_EQ(refused.code(), Code::kUnsupported) << refused.to_string();
    for (std::byte* address : {tensor, range + 11 * kMiB, range + 5 * kMiB}) {
      require(node.pool->remove_foreign(address, soon()));
    }
  });
}

TEST_P(DeviceShare, ProbesWhatItReaches) {
  run_job(job(4), [](Rank& rank) {
    Node node(rank);
    node.open();
    require(node.pool->share(0, node.peers, soon()));
    for (int r = 0; r < rank.size(); ++r) {
      const auto i = static_cast<size_t>(r);
      const Reach reach = require(probe_reach(*node.peers[i], *node.remotes[i], soon()));
      EXPECT_TRUE(reach.mapped) << reach.why;
      EXPECT_EQ(reach.why, "");
    }
    rank.meet();
  });
}

// Two processes push to each other at once, and over and over.
TEST_P(DeviceShare, ManyPushesAtOnce) {
  run_job(job(4), [](Rank& rank) {
    Node node(rank);
    node.open();
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 10; ++i) {
          node.take(2 * kMiB);
          EXPECT_TRUE(node.pool->share(0, node.peers, soon()).ok());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    node.write_all(node.take(kMiB), 1000);
  });
}

}  // namespace
}  // namespace zbccl::cuda
