// GPU memory shared between processes and between ranks of one process, on a driver made of host
// memory: what one process writes through its table is what the owner finds.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <cstring>
#include <thread>

#include "cuda_fake_driver.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/janitor.h"
#include "memory/cuda/peer_access.h"
#include "memory/cuda/remote_memory.h"
#include "memory/exchange.h"
#include "memory/unix_socket.h"
#include "support/job.h"

namespace zbccl::cuda {
namespace {

using memory::Exchange;
using memory::PeerProcess;
using memory::ProcessInfo;
using test::JobOptions;
using test::Mode;
using test::Rank;

constexpr size_t kMiB = size_t{1} << 20;

Deadline soon() { return Deadline::after(Milliseconds(20'000)); }

void require(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.to_string());
}
template <typename T>
T require(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().to_string());
  return std::move(result).value();
}

// One rank with its GPU (its number), connected to all others.
struct Node {
  explicit Node(Rank& rank_) : rank(rank_) {
    fake::install();
    exchange = require(Exchange::acquire());
    index = rank.next_index();
    const ProcessInfo mine = exchange->info();
    rank.board().put_blob(slot(rank.rank()), &mine, sizeof mine);
    for (int r = 0; r < rank.size(); ++r) {
      ProcessInfo info;
      if (!rank.board().get_blob(slot(r), &info, sizeof info, std::chrono::seconds(30))) {
        throw std::runtime_error("a rank did not introduce itself");
      }
      peers.push_back(require(exchange->peer(info, soon())));
    }
  }

  void open() {
    pool = require(DevicePool::of(device()));
    for (int r = 0; r < rank.size(); ++r) {
      remotes.push_back(require(RemoteMemory::open(peers[static_cast<size_t>(r)],
                                                   require(device_id(device_of(r))), device())));
    }
  }
  int device_of(int r) const { return r % fake::kDevices; }
  int device() const { return device_of(rank.rank()); }

  // Everybody's location of something.
  std::vector<Location> show(const void* address) {
    const int first = 100 + 20 * rank.next_index();
    const Location mine = *pool->locate(address, 1);
    rank.board().put_blob(first + rank.rank(), &mine, sizeof mine);
    std::vector<Location> all(static_cast<size_t>(rank.size()));
    for (int r = 0; r < rank.size(); ++r) {
      rank.board().get_blob(first + r, &all[static_cast<size_t>(r)], sizeof(Location),
                            std::chrono::seconds(30));
    }
    return all;
  }
  // Through the table, as a kernel would.
  std::byte* reach(int r, const Location& at) const {
    // In this order, as one thread's acquire: the sanitizer sees no word that another process
    // passes.
    const uint64_t base = remotes[static_cast<size_t>(r)]->base(at.segment);
    EXPECT_EQ(base, remotes[static_cast<size_t>(r)]->table()[at.segment]);
    return base == 0 ? nullptr : reinterpret_cast<std::byte*>(base + at.offset);
  }

  // Every rank writes its number into its place of everyone's block, and looks at its own.
  void write_all(std::byte* block, size_t stride) {
    const std::vector<Location> all = show(block);
    for (int r = 0; r < rank.size(); ++r) {
      std::byte* there = reach(r, all[static_cast<size_t>(r)]);
      ASSERT_NE(there, nullptr) << "rank " << rank.rank() << " does not reach " << r;
      std::memset(there + static_cast<size_t>(rank.rank()) * stride, 0x40 + rank.rank(), stride);
    }
    rank.meet();
    for (int r = 0; r < rank.size(); ++r) {
      const size_t at = static_cast<size_t>(r) * stride;
      EXPECT_EQ(block[at], static_cast<std::byte>(0x40 + r));
      EXPECT_EQ(block[at + stride - 1], static_cast<std::byte>(0x40 + r));
    }
    rank.meet();
  }
  std::byte* take(size_t bytes) {
    return static_cast<std::byte*>(require(pool->allocate(bytes, Use::kUser)));
  }

  int slot(int r) const { return 20 * index + r; }

  Rank& rank;
  int index = 0;
  std::shared_ptr<Exchange> exchange;
  std::vector<std::shared_ptr<PeerProcess>> peers;
  DevicePool* pool = nullptr;
  std::vector<std::shared_ptr<RemoteMemory>> remotes;
};

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
class DeviceSharing : public testing::Test {
 protected:
  void SetUp() override {
    if (test::thread_sanitized()) GTEST_SKIP() << "processes; see DeviceShare";
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
TEST_F(DeviceSharing, ASlowGpuIsAskedAgain) {
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
      std::this_thread::sleep_for(Milliseconds(200));
      // The service thread answers other requests meanwhile.
      auto again = PeerProcess::connect(node.exchange->info(), soon());
      EXPECT_TRUE(again.ok());
      fake::faults().streams_stand = false;
    } else {
      rank.meet();
      const auto start = Clock::now();
      EXPECT_TRUE(node.pool->share(0, node.peers, soon()).ok());
      EXPECT_GE(Clock::now() - start, std::chrono::milliseconds(100));
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
