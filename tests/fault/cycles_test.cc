// A thousand communicators made and destroyed in one process leave nothing behind: no descriptor,
// thread, mapping or memory.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "fault/leftovers.h"
#include "support/connect.h"
#include "support/process_state.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

int cycles() { return sanitized() ? 60 : 1000; }
constexpr int kWarmUp = 30;  // the pool, the allocator's arenas and the like come up once

size_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  size_t total = 0;
  size_t resident = 0;
  file >> total >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

// Looks when it is made, and compares when it is asked.
class Baseline {
 public:
  Baseline() : state_(process_state()), resident_(resident_bytes()), memory_(memory_report()) {}

  // What goes away a moment after a destroy (the peer closes its end) is waited for.
  void expect_same() const {
    ProcessState now = process_state();
    for (int i = 0; i < 2000 && !fits(now); ++i) {
      std::this_thread::sleep_for(milliseconds(2));
      now = process_state();
    }
    EXPECT_LE(now.threads, state_.threads);
    EXPECT_LE(now.descriptors, state_.descriptors) << describe_descriptors();
    const zbcclMemReport_t memory = memory_report();
    EXPECT_EQ(memory_.user_bytes, memory.user_bytes);
    // The last communicator may still wait for its peer to leave.
    EXPECT_LE(memory.metadata_bytes, memory_.metadata_bytes + (16 << 10));
    EXPECT_LE(memory.held_bytes, memory_.held_bytes + (uint64_t{1} << 20));
    EXPECT_LE(memory.reserved_bytes, memory_.reserved_bytes);
    if (sanitized()) return;  // a sanitizer has mappings and memory of its own
    EXPECT_LE(now.mappings, state_.mappings + kSomeMappings);
    EXPECT_LE(resident_bytes(), resident_ + kSomeBytes);
  }

 private:
  // malloc splits, merges and keeps; a leak of one per cycle would be a thousand.
  static constexpr int kSomeMappings = 16;
  static constexpr size_t kSomeBytes = 6 << 20;

  bool fits(const ProcessState& now) const {
    return now.threads <= state_.threads && now.descriptors <= state_.descriptors &&
           (sanitized() || now.mappings <= state_.mappings + kSomeMappings);
  }

  ProcessState state_;
  size_t resident_;
  zbcclMemReport_t memory_;
};

template <typename Cycle>
void repeat(const Cycle& cycle) {
  for (int i = 0; i < kWarmUp; ++i) cycle(i);
  const Baseline baseline;
  for (int i = 0; i < cycles(); ++i) cycle(i);
  baseline.expect_same();
}

// All ranks of a communicator, driven by one thread.
void use(const std::vector<Communicator>& comms) {
  std::vector<float> values(comms.size(), 1.0f);
  std::vector<Work> works;
  for (size_t r = 0; r < comms.size(); ++r) {
    zbcclWork_t work = nullptr;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.work = &work;
    check(zbcclAllReduce(&values[r], &values[r], 1, zbcclFloat32, zbcclSum, comms[r].get(), &call));
    works.emplace_back(work);
  }
  for (Work& work : works) work.wait();
  for (const float value : values) ASSERT_EQ(static_cast<float>(comms.size()), value);
}

TEST(Cycles, RanksOfOneProcess) {
  run_job({.ranks = 1, .deadline = seconds(90)}, [](Rank&) {
    repeat([](int i) {
      std::vector<Communicator> comms = Communicator::in_process(3);
      if (i % 4 == 0) use(comms);
    });
  });
}

TEST(Cycles, SplitsOfOneProcess) {
  run_job({.ranks = 2, .mode = Mode::kThreads, .deadline = seconds(90)}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const auto cycle = [&](int i) {
      Communicator part = comm.split(0, i % 2 == 0 ? rank.rank() : -rank.rank());
      float one = 1;
      part.all_reduce(&one, &one, 1, zbcclFloat32);
      ASSERT_EQ(2.0f, one);
      part.destroy();
    };
    for (int i = 0; i < kWarmUp; ++i) cycle(i);
    rank.meet();
    const Baseline baseline;
    rank.meet();
    for (int i = 0; i < cycles(); ++i) cycle(i);
    rank.meet();
    if (rank.rank() == 0) (void)Communicator::in_process(1);  // gives back what was left last
    rank.meet();
    baseline.expect_same();
    rank.meet();
    comm.destroy();
  });
}

TEST(Cycles, SplitsOfProcesses) {
  run_job({.ranks = 2, .deadline = seconds(90)}, [](Rank& rank) {
    Communicator comm = connect(rank);
    repeat([&](int) {
      Communicator part = comm.split(0, rank.rank());
      part.barrier();
      part.destroy();
      comm.barrier();
    });
    comm.destroy();
  });
}

// Hands one unique id after the other from rank 0 to rank 1.
struct Exchange {
  std::atomic<uint32_t> made;
  std::atomic<uint32_t> taken;
  zbcclUniqueId id;
};

void wait_until(const std::atomic<uint32_t>& word, uint32_t value) {
  const auto end = steady_clock::now() + seconds(sanitized() ? 150 : 30);
  while (word.load() != value) {
    if (steady_clock::now() > end) throw std::runtime_error("the other rank did not come");
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

TEST(Cycles, Processes) {
  void* block =
      ::mmap(nullptr, sizeof(Exchange), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(MAP_FAILED, block);
  auto* shared = new (block) Exchange{};
  const auto files = shared_files();
  run_job({.ranks = 2, .deadline = seconds(120)}, [&](Rank& rank) {
    const zbcclConfig_t config = test_config();
    uint32_t number = 0;
    repeat([&](int i) {
      zbcclUniqueId id;
      ++number;
      if (rank.rank() == 0) {
        check(zbcclGetUniqueId(&id));
        shared->id = id;
        shared->made = number;
        wait_until(shared->taken, number);
      } else {
        wait_until(shared->made, number);
        id = shared->id;
        shared->taken = number;
      }
      Communicator comm = Communicator::from_id(2, rank.rank(), id, &config);
      if (i % 4 == 0) {
        Buffer<int32_t> x(5000);
        for (int32_t& value : x) value = 1;
        comm.all_reduce(x.span());
        ASSERT_EQ(2, x[4999]);
      }
      comm.destroy();
    });
  });
  EXPECT_EQ(files, shared_files());
  ::munmap(block, sizeof(Exchange));
}

// The rank that leaves first, whose process the others met in, does not call the library again.
TEST(Cycles, WhoLeavesFirstKeepsNothingOnceAllHaveLeft) {
  run_job({.ranks = 2}, [](Rank& rank) {
    connect(rank).destroy();
    rank.meet();
    (void)Communicator::in_process(1);  // gives back what was left last
    const Baseline baseline;
    Communicator comm = connect(rank);
    comm.barrier();
    if (rank.rank() == 1) std::this_thread::sleep_for(milliseconds(300));
    comm.destroy();
    baseline.expect_same();
  });
}

}  // namespace
}  // namespace zbccl::test
