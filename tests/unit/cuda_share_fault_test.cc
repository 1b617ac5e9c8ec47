// GPU memory shared with processes that come late, die, stop, refuse or lie, on a driver made of
// host memory.
#include <signal.h>

#include <atomic>
#include <thread>

#include "cuda_share_node.h"

namespace zbccl::cuda {
namespace {

class DeviceSharing : public testing::Test {
 protected:
  void SetUp() override {
    if (test::thread_sanitized()) GTEST_SKIP() << "processes; see DeviceShare";
  }
};
TEST_F(DeviceSharing, WaitsForAPeerThatUsesNoGpuYet) {
  JobOptions options;
  options.ranks = 2;
  run_job(options, [](Rank& rank) {
    Node node(rank);
    if (rank.rank() == 0) {
      node.pool = require(DevicePool::of(0));
      node.take(100);
      const Status early = node.pool->share(0, node.peers, Deadline::after(Milliseconds(100)));
      EXPECT_EQ(early.code(), Code::kTimeout);
      EXPECT_NE(early.message().find("uses no GPU yet"), std::string::npos) << early.message();
      rank.meet();
      EXPECT_TRUE(node.pool->share(0, node.peers, soon()).ok());
      rank.meet();
    } else {
      rank.meet();
      std::this_thread::sleep_for(Milliseconds(50));
      node.pool = require(DevicePool::of(1));
      rank.meet();
      // What was pushed before it looked is there when it looks.
      auto remote = require(RemoteMemory::open(node.peers[0], require(device_id(0)), 1));
      EXPECT_NE(remote->base(0), 0u);
      EXPECT_EQ(remote->table()[0], remote->base(0));
    }
    rank.meet();
  });
}

TEST_F(DeviceSharing, TellsWhyAPeerCouldNotMap) {
  JobOptions options;
  options.ranks = 2;
  run_job(options, [](Rank& rank) {
    Node node(rank);
    node.open();
    std::byte* block = node.take(100);
    rank.meet();
    if (rank.rank() == 1) fake::faults().no_import = true;
    rank.meet();
    if (rank.rank() == 0) {
      const Status failed = node.pool->share(0, node.peers, soon());
      EXPECT_EQ(failed.code(), Code::kCuda);
      EXPECT_NE(failed.message().find("FAKE_ERROR"), std::string::npos) << failed.message();
      EXPECT_NE(failed.message().find("process"), std::string::npos) << failed.message();
    }
    rank.meet();
    fake::faults().no_import = false;
    if (rank.rank() == 1) fake::faults().no_access_for = 1;
    rank.meet();
    if (rank.rank() == 0) {
      EXPECT_EQ(node.pool->share(0, node.peers, soon()).code(), Code::kCuda);
    }
    rank.meet();
    if (rank.rank() == 1) {
      // Of the failed attempts nothing is mapped: the own chunk is all there is.
      EXPECT_EQ(fake::counts().mappings, 1);
      fake::faults().no_access_for = -1;
    }
    rank.meet();
    if (rank.rank() == 0) {
      fake::faults().no_export = true;
      EXPECT_EQ(node.pool->share(0, node.peers, soon()).code(), Code::kCuda);
      fake::faults().no_export = false;
    }
    require(node.pool->share(0, node.peers, soon()));
    node.write_all(block, 50);
  });
}

// A copy to a table that takes long holds up neither the service thread nor other peers.
// New addresses are in host memory, where kernels look, before the GPU has them.
TEST_F(DeviceSharing, ASlowGpuHoldsNobodyUp) {
  JobOptions options;
  options.ranks = 2;
  run_job(options, [](Rank& rank) {
    Node node(rank);
    node.open();
    std::byte* block = node.take(100);
    rank.meet();
    if (rank.rank() == 1) {
      fake::faults().streams_stand = true;
      rank.meet();
      std::this_thread::sleep_for(Milliseconds(2500));
      // The service thread answers other requests meanwhile.
      auto again = PeerProcess::connect(node.exchange->info(), soon());
      EXPECT_TRUE(again.ok());
      fake::faults().streams_stand = false;
    } else {
      rank.meet();
      const auto start = Clock::now();
      EXPECT_TRUE(node.pool->share(0, node.peers, soon()).ok());
      EXPECT_LT(Clock::now() - start, std::chrono::milliseconds(2000));
    }
    require(node.pool->share(0, node.peers, soon()));
    node.write_all(block, 50);
  });
}

TEST_F(DeviceSharing, APeerThatDiesIsNamed) {
  JobOptions options;
  options.ranks = 3;
  options.killed = {2};
  run_job(options, [](Rank& rank) {
    Node node(rank);
    node.open();
    std::byte* block = node.take(100);
    require(node.pool->share(0, node.peers, soon()));
    rank.meet();
    if (rank.rank() == 2) raise(SIGKILL);
    const Deadline deadline = soon();
    while (!node.peers[2]->dead() && !deadline.passed()) {
      std::this_thread::sleep_for(Milliseconds(1));
    }
    node.take(4 * kMiB);
    const auto start = Clock::now();
    const Status failed = node.pool->share(0, node.peers, soon());
    EXPECT_EQ(failed.code(), Code::kRemoteFailed) << failed.to_string();
    EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
    // The survivors go on, and what the dead one left is still mapped.
    require(node.pool->share(0, {node.peers.data(), 2}, soon()));
    EXPECT_NE(node.remotes[2]->base(0), 0u);
    void* tensor = fake::device_malloc(node.device(), kMiB);
    require(node.pool->add_foreign(tensor, 1));
    EXPECT_EQ(node.pool->share(1, node.peers, soon()).code(), Code::kRemoteFailed);
    EXPECT_TRUE(node.pool->remove_foreign(tensor, soon()).ok()) << "the dead hold nothing";
    rank.meet(2);
    (void)block;
  });
}

TEST_F(DeviceSharing, AStoppedPeerEndsAWaitAtItsDeadline) {
  JobOptions options;
  options.ranks = 2;
  run_job(options, [](Rank& rank) {
    Node node(rank);
    node.open();
    std::byte* block = node.take(100);
    rank.meet();
    if (rank.rank() == 1) {
      raise(SIGSTOP);
    } else {
      const Deadline deadline = soon();
      while (!node.peers[1]->stopped() && !deadline.passed()) {
        std::this_thread::sleep_for(Milliseconds(1));
      }
      EXPECT_EQ(node.pool->share(0, node.peers, Deadline::after(Milliseconds(100))).code(),
                Code::kTimeout);
      std::atomic<bool> cancelled{false};
      std::thread canceller([&] {
        std::this_thread::sleep_for(Milliseconds(50));
        cancelled = true;
      });
      EXPECT_EQ(node.pool->share(0, node.peers, soon(), [&] { return cancelled.load(); }).code(),
                Code::kAborted);
      canceller.join();
      kill(node.peers[1]->pid(), SIGCONT);
    }
    require(node.pool->share(0, node.peers, soon()));
    node.write_all(block, 50);
  });
}

// A mapping that is slow to go away delays the owner who takes its memory back, and nobody else.
TEST_F(DeviceSharing, UnmappingIsWaitedForByWhoAskedOnly) {
  JobOptions options;
  options.ranks = 2;
  run_job(options, [](Rank& rank) {
    Node node(rank);
    node.open();
    std::byte* block = node.take(100);
    void* tensor = fake::device_malloc(node.device(), kMiB);
    require(node.pool->add_foreign(tensor, 1));
    require(node.pool->share(1, node.peers, soon()));
    rank.meet();
    if (rank.rank() == 1) fake::faults().slow_unmap = true;
    rank.meet();
    if (rank.rank() == 0) {
      const Status late = node.pool->remove_foreign(tensor, Deadline::after(Milliseconds(100)));
      EXPECT_EQ(late.code(), Code::kTimeout) << late.to_string();
      EXPECT_FALSE(node.pool->locate(tensor, 1).has_value());
      require(node.pool->share(0, node.peers, soon()));
      // The number is not used for anything else before the peer has let go.
      void* other = fake::device_malloc(0, kMiB);
      require(node.pool->add_foreign(other, 1));
      EXPECT_EQ(node.pool->locate(other, 1)->segment, 2u);
      rank.meet();
      rank.meet();
      require(node.pool->remove_foreign(other, soon()));
      require(node.pool->add_foreign(other, 1));
      EXPECT_EQ(node.pool->locate(other, 1)->segment, 1u);
    } else {
      require(node.pool->share(0, node.peers, soon()));
      rank.meet();
      EXPECT_EQ(node.remotes[0]->base(1), 0u) << "no kernel finds it any more";
      fake::faults().slow_unmap = false;
      rank.meet();
    }
    node.write_all(block, 50);
  });
}

// Communicators come and go; what was mapped for them goes with the last.
TEST_F(DeviceSharing, MappingsEndWithTheirUsers) {
  JobOptions options;
  options.ranks = 2;
  run_job(options, [](Rank& rank) {
    for (int round = 0; round < 3; ++round) {
      {
        Node node(rank);
        node.open();
        std::byte* block = node.take(kMiB);
        require(node.pool->share(0, node.peers, soon()));
        node.write_all(block, 1000);
        require(node.pool->free(block));
        rank.meet();
      }
      rank.meet();
      const Deadline deadline = soon();
      while (fake::counts().reservations > 1 && !deadline.passed()) {
        std::this_thread::sleep_for(Milliseconds(1));
        (void)wait_for_janitor(soon());
      }
      EXPECT_EQ(fake::counts().reservations, 1) << "the own range";
      rank.meet();
    }
    EXPECT_EQ(fake::counts().contexts_pushed, 0);
  });
}

// A process that leaves and comes again finds everything again.
TEST_F(DeviceSharing, OneSideAloneMayLeaveAndReturn) {
  JobOptions options;
  options.ranks = 2;
  run_job(options, [](Rank& rank) {
    std::shared_ptr<Exchange> keep = require(Exchange::acquire());  // the same process to its peers
    auto first = std::make_unique<Node>(rank);
    first->open();
    std::byte* block = first->take(kMiB);
    require(first->pool->share(0, first->peers, soon()));
    first->write_all(block, 1000);
    if (rank.rank() == 1) first.reset();
    rank.meet();
    Node second(rank);
    second.open();
    require(second.pool->share(0, second.peers, soon()));
    second.write_all(block, 1000);
    if (rank.rank() == 0) first->remotes.clear();
    rank.meet();
    second.write_all(block, 1000);
  });
}

TEST_F(DeviceSharing, AMappingThatDoesNotCarryIsFound) {
  JobOptions options;
  options.ranks = 3;
  run_job(options, [](Rank& rank) {
    Node node(rank);
    node.open();
    require(node.pool->share(0, node.peers, soon()));
    const auto probe = [&](size_t r) {
      return require(probe_reach(*node.peers[r], *node.remotes[r], soon()));
    };
    if (rank.rank() == 1) fake::faults().misread = true;
    if (rank.rank() == 2) fake::faults().lose_writes = true;
    const Reach reach = probe(0);
    EXPECT_EQ(reach.mapped, rank.rank() == 0);
    constexpr const char* kWhy[] = {"", "read otherwise", "did not arrive"};
    EXPECT_NE(reach.why.find(kWhy[rank.rank()]), std::string::npos) << reach.why;
    fake::faults().misread = false;
    fake::faults().lose_writes = false;
    EXPECT_EQ(probe(0).mapped, rank.rank() == 0) << "it is asked once";
    rank.meet();
  });
}

TEST_F(DeviceSharing, AWayCanBeDenied) {
  JobOptions options;
  options.ranks = 2;
  options.env = {{"ZBCCL_DENY_REACH", "mapped"}};
  run_job(options, [](Rank& rank) {
    Node node(rank);
    node.open();
    require(node.pool->share(0, node.peers, soon()));
    for (int r = 0; r < 2; ++r) {
      const auto i = static_cast<size_t>(r);
      const Reach reach = require(probe_reach(*node.peers[i], *node.remotes[i], soon()));
      EXPECT_EQ(reach.mapped, r == rank.rank()) << "a GPU's own memory needs no way";
      if (!reach.mapped) {
        EXPECT_NE(reach.why.find("ZBCCL_DENY_REACH"), std::string::npos);
      }
    }
    rank.meet();
  });
}

TEST_F(DeviceSharing, ADriverThatForbidsIsBelieved) {
  JobOptions options;
  options.ranks = 2;
  run_job(options, [](Rank& rank) {
    Node node(rank);
    node.open();
    require(node.pool->share(0, node.peers, soon()));
    fake::faults().no_peer_from = node.device();
    const size_t other = rank.rank() == 0 ? 1 : 0;
    const Reach reach = require(probe_reach(*node.peers[other], *node.remotes[other], soon()));
    EXPECT_FALSE(reach.mapped);
    EXPECT_NE(reach.why.find("peer access"), std::string::npos) << reach.why;
    rank.meet();
  });
}

// What a peer sends is looked at.
TEST_F(DeviceSharing, RefusesChunksThatCannotBe) {
  JobOptions options;
  options.ranks = 2;
  run_job(options, [](Rank& rank) {
    Node node(rank);
    node.open();
    rank.meet();
    if (rank.rank() == 0) {
      memory::DeviceChunk good;
      good.segment = 3;
      good.kind = static_cast<uint32_t>(memory::ChunkKind::kVmm);
      good.use = 1;
      good.reserve = 64 * kMiB;
      good.size = 2 * kMiB;
      const auto refused = [&](auto change) {
        memory::DeviceChunk chunk = good;
        change(chunk);
        return node.peers[1]->push_chunk(chunk, -1, soon()).code() == Code::kInvalidArgument;
      };
      EXPECT_TRUE(refused([](auto&) {})) << "no descriptor";
      EXPECT_TRUE(refused([](auto& c) { c.segment = kMaxDeviceSegments; }));
      EXPECT_TRUE(refused([](auto& c) { c.kind = 9; }));
      EXPECT_TRUE(refused([](auto& c) { c.use = 0; }));
      EXPECT_TRUE(refused([](auto& c) { c.size = 0; }));
      EXPECT_TRUE(refused([](auto& c) { c.size = c.reserve + 1; }));
      EXPECT_TRUE(refused([](auto& c) { c.offset = ~uint64_t{0}; }));
      EXPECT_TRUE(refused([](auto& c) { c.reserve = ~uint64_t{0}; }));
      memory::DeviceChunk unknown = good;
      EXPECT_TRUE(node.peers[1]->drop_segment(unknown, soon()).ok());
    }
    rank.meet();
    EXPECT_EQ(fake::counts().reservations, 1);
  });
}

}  // namespace
}  // namespace zbccl::cuda
