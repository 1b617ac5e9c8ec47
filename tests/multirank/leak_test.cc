// Nothing is left in the process after a communicator is destroyed, however often.
#include <gtest/gtest.h>

#include <thread>

#include "support/connect.h"
#include "support/process_state.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// One communicator's whole life with some of everything.
void cycle(Rank& rank) {
  Communicator comm = connect(rank);
  Buffer<float> x(10000);
  std::vector<float> y(10000, 1.0f);
  std::fill(x.begin(), x.end(), 1.0f);
  comm.all_reduce(x.span());
  comm.all_reduce(std::span<float>(y));
  Work work = comm.barrier_async();
  Work sent = comm.send_async(y.data(), 100, zbcclFloat32, (rank.rank() + 1) % rank.size());
  comm.recv(x.data(), 100, zbcclFloat32, (rank.rank() + rank.size() - 1) % rank.size());
  sent.wait();
  work.wait();
  Communicator part = comm.split(rank.rank() % 2, 0);
  part.barrier();
  part.destroy();
  comm.destroy();
}

// What peers do after a destroy (close, unmap) is not waited for; it must happen, though.
ProcessState settled(Rank& rank, const ProcessState& target) {
  ProcessState now = process_state();
  for (int i = 0; i < 300; ++i) {
    now = process_state();
    if (now.threads <= target.threads && now.descriptors <= target.descriptors &&
        (sanitized() || now.mappings <= target.mappings)) {
      break;
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
  rank.meet();
  return now;
}

class Leak : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, Leak, testing::Values(Mode::kThreads, Mode::kProcesses),
                         [](const auto& test) { return mode_name(test.param); });

TEST_P(Leak, FiftyCyclesLeaveNothing) {
  const auto files = shared_memory_files();
  run_job({.ranks = 3, .mode = GetParam(), .deadline = seconds(90)}, [](Rank& rank) {
    // Process-wide things (the pool, the service thread, malloc's arenas) come up once.
    for (int i = 0; i < 10; ++i) cycle(rank);
    std::this_thread::sleep_for(milliseconds(300));
    rank.meet();
    const ProcessState before = process_state();
    rank.meet();
    for (int i = 0; i < 50; ++i) cycle(rank);
    rank.meet();
    // malloc may add or merge a mapping of its own; a leak would add at least one in each cycle.
    ProcessState limit = before;
    limit.mappings += 16;
    const ProcessState after = settled(rank, limit);
    EXPECT_LE(after.threads, limit.threads);
    EXPECT_LE(after.descriptors, limit.descriptors) << describe_descriptors();
    if (!sanitized()) {  // a sanitizer maps memory of its own
      EXPECT_LE(after.mappings, limit.mappings);
    }
  });
  EXPECT_EQ(files, shared_memory_files());
}

// What a communicator leaves is freed when its peers have left too, by the next call that looks;
// so the last ones' may still be there, and never more.
TEST_P(Leak, HeldMemoryDoesNotGrow) {
  run_job({.ranks = 3, .mode = GetParam(), .deadline = seconds(90)}, [](Rank& rank) {
    uint64_t metadata = 0;
    {
      Communicator comm = connect(rank);
      metadata = comm.stats().metadata_bytes;
      comm.destroy();
    }
    for (int i = 0; i < 5; ++i) cycle(rank);
    rank.meet();
    const zbcclMemReport_t before = memory_report();
    rank.meet();
    for (int i = 0; i < 20; ++i) cycle(rank);
    rank.meet();
    const zbcclMemReport_t after = memory_report();
    const uint64_t ranks_here = rank.mode() == Mode::kThreads ? 3 : 1;
    EXPECT_EQ(0u, after.user_bytes);
    EXPECT_LE(after.metadata_bytes, before.metadata_bytes + 2 * metadata * ranks_here);
    EXPECT_LE(after.held_bytes, before.held_bytes + (uint64_t{1} << 20));
    EXPECT_LE(after.reserved_bytes, before.reserved_bytes);
    rank.meet();
  });
}

// A failed communicator gives back as much as a good one.
TEST_P(Leak, AbortedCommunicatorsLeaveNothing) {
  run_job({.ranks = 3, .mode = GetParam(), .deadline = seconds(90)}, [](Rank& rank) {
    const auto aborted = [&] {
      Communicator comm = connect(rank);
      comm.barrier();
      rank.meet();  // nobody is still in the barrier
      Work work = comm.barrier_async();
      comm.abort();
      comm.destroy();
    };
    for (int i = 0; i < 10; ++i) aborted();
    std::this_thread::sleep_for(milliseconds(300));
    rank.meet();
    const ProcessState before = process_state();
    rank.meet();
    for (int i = 0; i < 30; ++i) aborted();
    rank.meet();
    ProcessState limit = before;
    limit.mappings += 16;
    const ProcessState after = settled(rank, limit);
    EXPECT_LE(after.threads, limit.threads);
    EXPECT_LE(after.descriptors, limit.descriptors) << describe_descriptors();
    if (!sanitized()) {  // a sanitizer maps memory of its own
      EXPECT_LE(after.mappings, limit.mappings);
    }
  });
}

TEST(LeakAllocations, AllocateAndFreeManyTimes) {
  run_job({.ranks = 1}, [](Rank&) {
    for (int i = 0; i < 3; ++i) Buffer<std::byte> warm(size_t{32} << 20);
    const ProcessState before = process_state();
    for (size_t i = 0; i < 3000; ++i) {
      Buffer<std::byte> a(1 + i * 37 % 100000);
      Buffer<std::byte> b(1 + i * 101 % 5000000);
      a[0] = b[0] = std::byte{1};
    }
    const ProcessState after = process_state();
    EXPECT_LE(after.descriptors, before.descriptors);
    EXPECT_LE(after.mappings, before.mappings + 8);
    EXPECT_EQ(0u, memory_report().user_bytes);
  });
}

}  // namespace
}  // namespace zbccl::test
