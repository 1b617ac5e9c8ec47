// The team on its own: control blocks in plain memory, ranks as threads. Litmus tests of the memory
// order run here too: one mapping, so that the thread sanitizer sees both sides.
#include "transport/team.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <new>
#include <thread>
#include <vector>

#include "base/types.h"
#include "memory/process_info.h"

namespace zbccl::transport {
namespace {

class Ranks {
 public:
  explicit Ranks(int nranks, bool spin = false, uint32_t base = 0,
                 Milliseconds timeout = Milliseconds(60'000)) {
    const auto self = memory::PeerProcess::self(memory::ProcessInfo{});
    // Whole lines, so that the outbox behind the block is aligned as in the pool.
    const size_t block_bytes = (ControlBlock::bytes(nranks) + kLine - 1) / kLine * kLine;
    for (int r = 0; r < nranks; ++r) {
      storage_.emplace_back(block_bytes + kLine + 2 * kOutbox);
      auto at = reinterpret_cast<uintptr_t>(storage_.back().data());
      at = (at + kLine - 1) / kLine * kLine;
      auto* block = reinterpret_cast<ControlBlock*>(at);
      for (Packet& packet : block->packets) packet.epoch = base;
      block->phase.phase = base;
      peers_.push_back({self, block, reinterpret_cast<std::byte*>(at) + block_bytes});
    }
    for (int r = 0; r < nranks; ++r) {
      TeamOptions options;
      options.rank = r;
      options.epoch_base = base;
      options.spin = spin;
      options.outbox_bytes = kOutbox;
      options.timeout = timeout;
      options.name = "test";
      teams_.push_back(std::make_unique<Team>(options, peers_));
    }
  }
  Team& operator[](int r) { return *teams_[static_cast<size_t>(r)]; }
  void run(const std::function<void(Team&)>& body) {
    std::vector<std::thread> threads;
    for (auto& team : teams_) threads.emplace_back([&] { body(*team); });
    for (std::thread& thread : threads) thread.join();
  }

  static constexpr size_t kOutbox = 4096;

 private:
  std::vector<std::vector<std::byte>> storage_;
  std::vector<Peer> peers_;
  std::vector<std::unique_ptr<Team>> teams_;
};

Signature call(uint64_t count) {
  Signature signature;
  signature.operation = static_cast<uint8_t>(Operation::kAllReduce);
  signature.count = count;
  return signature;
}

// Message passing: what a rank stores in its outbox before it enters is what every rank reads after
// it has entered, and nobody overwrites a half that somebody still reads. Plain accesses, so a
// missing order is a race for the sanitizer.
void pass_messages(bool spin, uint32_t base) {
  Ranks ranks(3, spin, base);
  ranks.run([](Team& team) {
    for (uint64_t i = 0; i < 3000; ++i) {
      auto* box = reinterpret_cast<uint64_t*>(team.next_outbox());
      for (int k = 0; k < 16; ++k) box[k] = i * 100 + static_cast<uint64_t>(team.rank());
      ASSERT_TRUE(team.enter(call(i), {}, {}, {}).ok());
      for (int r = 0; r < team.size(); ++r) {
        const auto* seen = reinterpret_cast<const uint64_t*>(team.outbox(r));
        for (int k = 0; k < 16; ++k) ASSERT_EQ(seen[k], i * 100 + static_cast<uint64_t>(r));
      }
      if (i % 3 == 0) {
        ASSERT_TRUE(team.sync().ok());
      }
      if (i % 7 == 0) team.signal();  // a phase that this rank does not wait for
    }
  });
}

TEST(Team, PassesMessagesSpinning) { pass_messages(true, 0); }
TEST(Team, PassesMessagesSleeping) { pass_messages(false, 0); }
TEST(Team, PassesMessagesWhileEpochsWrap) {
  pass_messages(true, 0xfffffff0U);
  pass_messages(false, 0xfffffff0U);
}

TEST(Team, AMismatchIsSeenByAllAndLeavesTheTeamUsable) {
  Ranks ranks(3);
  ranks.run([](Team& team) {
    const Status status = team.enter(call(team.rank() == 1 ? 5 : 4), {}, {}, {});
    EXPECT_EQ(status.code(), Code::kInvalidUsage);
    EXPECT_NE(status.message().find("rank 1 called all_reduce(5 x f32"), std::string::npos)
        << status.message();
    EXPECT_NE(status.message().find("rank 0, 2 called all_reduce(4 x f32"), std::string::npos)
        << status.message();
    EXPECT_TRUE(team.enter(call(9), {}, {}, {}).ok());
  });
}

TEST(Team, AMissingRankIsNamedAtTheDeadline) {
  for (const bool spin : {false, true}) {
    Ranks ranks(3, spin, 0, Milliseconds(100));
    ranks.run([](Team& team) {
      if (team.rank() == 2) return;
      const Status status = team.enter(call(1), {}, {}, {});
      EXPECT_EQ(status.code(), Code::kTimeout);
      EXPECT_NE(status.message().find("rank 2"), std::string::npos) << status.message();
    });
    // It comes at last, and may not touch anything any more.
    const Status late = ranks[2].enter(call(1), {}, {}, {});
    EXPECT_EQ(late.code(), Code::kRemoteFailed);
    EXPECT_NE(late.message().find("gave up waiting for this rank"), std::string::npos)
        << late.message();
  }
}

TEST(Team, AFailureEndsEveryWait) {
  for (const bool spin : {false, true}) {
    Ranks ranks(4, spin);
    ranks.run([](Team& team) {
      if (team.rank() == 3) {
        std::this_thread::sleep_for(Milliseconds(20));
        team.fail({Code::kAborted, 3, -1, false, 1});
        return;
      }
      const Status status = team.enter(call(1), {}, {}, {});
      EXPECT_EQ(status.code(), Code::kAborted);
      EXPECT_NE(status.message().find("rank 3 aborted"), std::string::npos) << status.message();
    });
  }
}

TEST(Team, ARankThatLeftIsNotWaitedFor) {
  Ranks ranks(2);
  ranks[0].own().left(1, 2).store(1);
  const Status status = ranks[0].enter(call(1), {}, {}, {});
  EXPECT_EQ(status.code(), Code::kRemoteFailed);
  EXPECT_NE(status.message().find("rank 1 left"), std::string::npos) << status.message();
}

TEST(Team, TheFirstFailureStays) {
  Ranks ranks(2);
  ranks[0].fail({Code::kAborted, 0, -1, false, 7});
  ranks[1].fail({Code::kTimeout, 1, -1, false, 9});
  for (int r = 0; r < 2; ++r) {
    EXPECT_EQ(ranks[r].failure().code, Code::kAborted);
    EXPECT_EQ(ranks[r].failure().culprit, 0);
    EXPECT_EQ(ranks[r].failure().reporter, 0);
    EXPECT_EQ(ranks[r].failure().epoch, 7u);
  }
}

TEST(Failure, SurvivesPacking) {
  for (const int culprit : {-1, 0, 1, 63, kMaxRanks - 1}) {
    for (const bool died : {false, true}) {
      const Failure in = {Code::kRemoteFailed, culprit, kMaxRanks - 1, died, 0xfedcba98U};
      const Failure out = Failure::unpack(in.pack());
      EXPECT_EQ(out.code, in.code);
      EXPECT_EQ(out.culprit, in.culprit);
      EXPECT_EQ(out.reporter, in.reporter);
      EXPECT_EQ(out.died, in.died);
      EXPECT_EQ(out.epoch, in.epoch);
      EXPECT_NE(in.pack(), 0u);
    }
  }
}

TEST(Epochs, AreComparedAcrossTheWrap) {
  EXPECT_TRUE(reached(5, 5));
  EXPECT_TRUE(reached(6, 5));
  EXPECT_FALSE(reached(4, 5));
  EXPECT_TRUE(reached(0, 0xffffffffU));
  EXPECT_TRUE(reached(3, 0xfffffff0U));
  EXPECT_FALSE(reached(0xffffffffU, 0));
}

TEST(ControlBlocks, PartsLieApart) {
  alignas(kLine) static std::byte storage[8192];
  auto* block = reinterpret_cast<ControlBlock*>(storage);
  const int n = 5;
  EXPECT_LE(ControlBlock::bytes(n), sizeof storage);
  EXPECT_EQ(reinterpret_cast<std::byte*>(&block->offer(0)), storage + sizeof(ControlBlock));
  EXPECT_EQ(reinterpret_cast<std::byte*>(&block->answer(0, n)),
            reinterpret_cast<std::byte*>(&block->offer(n)));
  EXPECT_EQ(reinterpret_cast<std::byte*>(block->rows(0, n)),
            reinterpret_cast<std::byte*>(&block->answer(n, n)));
  EXPECT_EQ(block->rows(1, n), block->rows(0, n) + n);
  EXPECT_EQ(reinterpret_cast<std::byte*>(&block->left(0, n)),
            reinterpret_cast<std::byte*>(block->rows(1, n) + n));
  EXPECT_EQ(reinterpret_cast<std::byte*>(&block->left(n, n)), storage + ControlBlock::bytes(n));
}

}  // namespace
}  // namespace zbccl::transport
