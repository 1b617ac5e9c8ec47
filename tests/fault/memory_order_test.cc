// Litmus tests of the orders that transport/control_block.h states, by two threads that share one
// mapping and by two processes with a mapping each. Random delays between the steps widen the
// windows. Payloads are plain memory, so that the thread sanitizer sees a missing order as a race.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <new>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/types.h"
#include "kernels/reduce.h"
#include "memory/process_info.h"
#include "transport/team.h"

namespace zbccl::transport {
namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kScale = 10;
#else
constexpr int kScale = 1;
#endif

enum class Place { kThreads, kProcesses };

// A small generator of its own for each rank: which steps are delayed differs from run to run.
class Delays {
 public:
  explicit Delays(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  // Mostly nothing, sometimes some pauses, now and then another thread's turn.
  void maybe() {
    const uint64_t choice = next() % 64;
    if (choice < 8) {
      for (uint64_t i = 0; i < choice * 8; ++i) spin_pause();
    } else if (choice == 8) {
      std::this_thread::yield();
    }
  }

 private:
  uint64_t state_;
};

// Control blocks and outboxes of a few ranks in memory that processes share.
class Ranks {
 public:
  static constexpr size_t kOutbox = 4096;

  Ranks(int nranks, bool spin, uint32_t base) : spin_(spin), base_(base) {
    const size_t block = round_up(ControlBlock::bytes(nranks));
    bytes_ = static_cast<size_t>(nranks) * (block + 2 * kOutbox);
    memory_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    const auto self = memory::PeerProcess::self(memory::ProcessInfo{});
    auto* at = static_cast<std::byte*>(memory_);
    for (int r = 0; r < nranks; ++r, at += block + 2 * kOutbox) {
      auto* control = reinterpret_cast<ControlBlock*>(at);
      for (Packet& packet : control->packets) packet.epoch = base;
      control->phase.phase = base;
      peers_.push_back({self, control, at + block});
    }
  }
  ~Ranks() { ::munmap(memory_, bytes_); }

  // Runs `body` once for each rank. Expectations in it count.
  void run(Place place, const std::function<void(Team&, Delays&)>& body) {
    const auto one = [&](int r) {
      TeamOptions options;
      options.rank = r;
      options.epoch_base = base_;
      options.spin = spin_;
      options.outbox_bytes = kOutbox;
      options.timeout = Milliseconds(100'000);
      options.name = "test";
      Team team(options, peers_);
      Delays delays(static_cast<uint64_t>(r) + 17 * static_cast<uint64_t>(::getpid()));
      body(team, delays);
    };
    const int n = static_cast<int>(peers_.size());
    if (place == Place::kThreads) {
      std::vector<std::thread> threads;
      for (int r = 0; r < n; ++r) threads.emplace_back(one, r);
      for (std::thread& thread : threads) thread.join();
      return;
    }
    std::vector<pid_t> children;
    for (int r = 0; r < n; ++r) {
      children.push_back(::fork());
      if (children.back() != 0) continue;
      ::alarm(100);
      one(r);
      std::fflush(nullptr);
      ::_exit(testing::Test::HasFailure() ? 1 : 0);
    }
    for (const pid_t child : children) {
      int status = -1;
      ::waitpid(child, &status, 0);
      EXPECT_EQ(0, status);
    }
  }

 private:
  static size_t round_up(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

  bool spin_;
  uint32_t base_;
  size_t bytes_ = 0;
  void* memory_ = nullptr;
  std::vector<Peer> peers_;
};

Signature call(uint64_t count) {
  Signature signature;
  signature.operation = static_cast<uint8_t>(Operation::kAllReduce);
  signature.count = count;
  return signature;
}

struct Setting {
  Place place;
  bool spin;
};

class MemoryOrder : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_THREAD__)
    if (GetParam().place == Place::kProcesses) {
      GTEST_SKIP() << "ThreadSanitizer does not see other processes";
    }
#endif
  }
};
INSTANTIATE_TEST_SUITE_P(
    Settings, MemoryOrder,
    testing::Values(Setting{Place::kThreads, true}, Setting{Place::kThreads, false},
                    Setting{Place::kProcesses, true}, Setting{Place::kProcesses, false}),
    [](const auto& test) {
      return std::string(test.param.place == Place::kThreads ? "threads" : "processes") +
             (test.param.spin ? "_spin" : "_sleep");
    });

// Packet: payload first, epoch last with release; epoch with acquire, then the payload. And parity:
// nobody overwrites a packet or a half of the outbox that somebody still reads. Over the wrap of
// the epochs.
TEST_P(MemoryOrder, PacketsAndOutboxes) {
  Ranks ranks(2, GetParam().spin, 0xffffffffU - 5000);
  ranks.run(GetParam().place, [](Team& team, Delays& delays) {
    const int rounds = 200'000 / kScale;
    for (int i = 0; i < rounds; ++i) {
      const auto number = static_cast<uint64_t>(i);
      auto* box = reinterpret_cast<uint64_t*>(team.next_outbox());
      for (uint64_t k = 0; k < 8; ++k) {
        box[k * 64 % 500] = number * 10 + static_cast<uint64_t>(team.rank());
        if (k == 4) delays.maybe();
      }
      const BufferRef shown = {static_cast<uint32_t>(i), 0,
                               number * 7 + static_cast<uint64_t>(team.rank())};
      ASSERT_TRUE(team.enter(call(number), shown, {}, {}).ok());
      delays.maybe();
      for (int r = 0; r < team.size(); ++r) {
        const Packet& packet = team.packet(r);
        ASSERT_EQ(number, packet.signature.count);
        ASSERT_EQ(number * 7 + static_cast<uint64_t>(r), packet.input.offset);
        const auto* seen = reinterpret_cast<const uint64_t*>(team.outbox(r));
        for (uint64_t k = 0; k < 8; ++k) {
          ASSERT_EQ(number * 10 + static_cast<uint64_t>(r), seen[k * 64 % 500]);
        }
      }
    }
  });
}

// Phases: what a rank wrote into a peer's memory before its signal is there after the wait, and the
// next round's writes come only after it. Plain and streaming stores, which are not ordered by the
// flag's release alone but by the fence that ends the copy.
TEST_P(MemoryOrder, PhasesAndStreamingStores) {
  constexpr size_t kBytes = 16 << 10;
  struct Area {
    alignas(128) std::byte data[2][kBytes];
  };
  void* memory =
      ::mmap(nullptr, sizeof(Area), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(MAP_FAILED, memory);
  auto* area = static_cast<Area*>(memory);
  Ranks ranks(2, GetParam().spin, 0xffffffffU - 2000);
  ranks.run(GetParam().place, [area](Team& team, Delays& delays) {
    std::vector<uint64_t> source(kBytes / sizeof(uint64_t));
    const int rounds = 60'000 / kScale;
    for (int i = 0; i < rounds; ++i) {
      const auto me = static_cast<uint64_t>(team.rank());
      ASSERT_TRUE(team.enter(call(1), {}, {}, {}).ok());
      for (uint64_t& word : source) word = static_cast<uint64_t>(i) * 2 + me;
      delays.maybe();
      // Into the peer's half, unaligned at both ends now and then.
      const size_t skip = delays.next() % 4 == 0 ? 24 : 0;
      std::byte* to = area->data[1 - me];
      kernels::copy(to + skip, source.data(), kBytes - 2 * skip, i % 2 == 0);
      ASSERT_TRUE(team.sync().ok());
      const std::byte* mine = area->data[me];
      for (size_t at = 24; at + 24 < kBytes - 24; at += sizeof(uint64_t)) {
        uint64_t seen = 0;
        std::memcpy(&seen, mine + at, sizeof seen);
        ASSERT_EQ(static_cast<uint64_t>(i) * 2 + (1 - me), seen) << "round " << i << " at " << at;
      }
      delays.maybe();
    }
  });
  ::munmap(memory, sizeof(Area));
}

// Sleeping and waking: a round in which a wake is lost would take a slice of 50 ms, and a lost
// signal for ever. Ranks arrive in any order, at once, or so late that the others sleep.
TEST_P(MemoryOrder, NoWakeIsLost) {
  constexpr int kMany = 3;
  Ranks ranks(kMany, GetParam().spin, 0xffffffffU - 30'000);
  const auto start = Clock::now();
  const int rounds = 100'000 / kScale;
  ranks.run(GetParam().place, [rounds](Team& team, Delays& delays) {
    for (int i = 0; i < rounds; ++i) {
      delays.maybe();
      // Longer than ranks hand the core to each other before they sleep.
      if (delays.next() % 512 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (i % 3 == 0) {
        ASSERT_TRUE(team.enter(call(1), {}, {}, {}).ok());
      } else {
        ASSERT_TRUE(team.sync().ok()) << i;
      }
    }
  });
  // A wake lost in every hundredth round would cost this much. So may the sanitizers, which are
  // here for the accesses.
  if (kScale == 1) {
    EXPECT_LT(Clock::now() - start, rounds / 100 * Milliseconds(50));
  }
}

// Doorbells: look, then sleep on what was seen before the look. One rank rings for each piece of
// work, the other does it; ranks take turns by a plain counter behind the bell.
TEST_P(MemoryOrder, DoorbellsWakeWhoSleeps) {
  void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(MAP_FAILED, memory);
  auto* turn = new (memory) std::atomic<uint32_t>(0);
  auto* payload = reinterpret_cast<uint64_t*>(static_cast<std::byte*>(memory) + 128);
  Ranks ranks(2, GetParam().spin, 0);
  const auto start = Clock::now();
  const int rounds = 50'000 / kScale;
  ranks.run(GetParam().place, [=](Team& team, Delays& delays) {
    const auto me = static_cast<uint32_t>(team.rank());
    for (uint32_t i = 0; i < static_cast<uint32_t>(rounds); ++i) {
      for (;;) {
        const uint32_t seen = team.doorbell_rings();
        delays.maybe();
        if (turn->load(std::memory_order_acquire) == 2 * i + me) break;
        team.sleep_on_doorbell(seen, Milliseconds(1000));
      }
      ASSERT_EQ(2 * uint64_t{i} + me, *payload);
      *payload += 1;
      turn->store(2 * i + me + 1, std::memory_order_release);
      delays.maybe();
      team.ring(1 - team.rank());
    }
  });
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(25));  // a lost ring costs a second
  ::munmap(memory, 4096);
}

// The failure word ends a wait whatever it sleeps on, and carries what was stored before it.
TEST_P(MemoryOrder, FailuresCarryWhatWasStoredBefore) {
  for (int round = 0; round < 200 / kScale; ++round) {
    Ranks ranks(2, GetParam().spin, 0);
    ranks.run(GetParam().place, [](Team& team, Delays& delays) {
      if (team.rank() == 0) {
        const Status status = team.enter(call(5), {}, {}, {});
        ASSERT_EQ(Code::kAborted, status.code());
        // Seen after the failure: what rank 1 wrote before it.
        ASSERT_EQ(0x77, std::to_integer<int>(*team.peer(1).outbox));
      } else {
        *team.peer(1).outbox = std::byte{0x77};
        for (int i = 0; i < 20; ++i) delays.maybe();
        Failure failure;
        failure.code = Code::kAborted;
        failure.culprit = 1;
        team.fail(failure);
      }
    });
  }
}

}  // namespace
}  // namespace zbccl::transport
