// Several communicators and threads at once: what one does never shows in another. Every result is
// exact.
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "fault/calls.h"
#include "support/connect.h"
#include "support/data.h"

namespace zbccl::test {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

struct Setting {
  Mode mode;
  const char* wait;
};

class Stress : public testing::TestWithParam<Setting> {
 protected:
  JobOptions job(int ranks) const {
    return {.ranks = ranks,
            .mode = GetParam().mode,
            .deadline = seconds(100),
            // Epochs wrap in the middle of it.
            .env = {{"ZBCCL_HOST_WAIT", GetParam().wait}, {"ZBCCL_EPOCH_BASE", "4294967250"}}};
  }
};
INSTANTIATE_TEST_SUITE_P(Settings, Stress,
                         testing::Values(Setting{Mode::kThreads, "spin"},
                                         Setting{Mode::kThreads, "sleep"},
                                         Setting{Mode::kProcesses, "spin"},
                                         Setting{Mode::kProcesses, "sleep"}),
                         [](const auto& test) {
                           return std::string(mode_name(test.param.mode)) + "_" + test.param.wait;
                         });

// One communicator's calls, chosen by a seed that all its ranks share, with delays that they do
// not.
void run_calls(zbcclComm_t comm, int rank, uint64_t seed, int rounds) {
  CallSet small(comm, 5);
  CallSet middle(comm, 3000);
  CallSet large(comm, 40'000);
  CallSet* const sets[] = {&small, &middle, &large};
  int size = 0;
  check(zbcclCommCount(comm, &size));
  for (int i = 0; i < rounds; ++i) {
    const uint64_t choice = mix(seed + static_cast<uint64_t>(i));
    const int call = static_cast<int>(choice % CallSet::kNumCalls);
    if (!CallSet::is_collective(call)) continue;
    const uint64_t delay = mix(choice + static_cast<uint64_t>(rank)) % 64;
    if (delay == 0) std::this_thread::sleep_for(microseconds(300));
    const int root = static_cast<int>(choice >> 8) % size;
    CallSet& set = *sets[(choice >> 32) % std::size(sets)];
    ASSERT_EQ("", set.run_checked(call, root < 0 ? 0 : root)) << "round " << i;
  }
}

TEST_P(Stress, ACommunicatorForEachThread) {
  run_job(job(2), [](Rank& rank) {
    constexpr int kThreads = 3;
    Communicator comm = connect(rank);
    std::vector<Communicator> own;
    for (int t = 0; t < kThreads; ++t) own.push_back(comm.split(0, rank.rank()));
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        run_calls(own[static_cast<size_t>(t)].get(), rank.rank(), seed_of(1, t),
                  sanitized() ? 60 : 4000);
      });
    }
    for (std::thread& thread : threads) thread.join();
    own.clear();
    comm.barrier();
    comm.destroy();
  });
}

// Asynchronous work of one communicator beside blocking calls of another, and a third that comes
// and goes meanwhile.
TEST_P(Stress, AsynchronousWorkAndNewCommunicators) {
  run_job(job(3), [](Rank& rank) {
    Communicator comm = connect(rank);
    Communicator background = comm.split(0, rank.rank());
    Communicator parent = comm.split(0, -rank.rank());
    std::thread maker([&] {
      for (int i = 0; i < (sanitized() ? 5 : 150); ++i) {
        Communicator part = parent.split(0, 0);
        run_calls(part.get(), rank.rank(), seed_of(2, static_cast<uint64_t>(i)), 10);
        part.destroy();
      }
    });
    const int rounds = sanitized() ? 10 : 300;
    constexpr size_t kWorks = 8;
    for (int round = 0; round < rounds; ++round) {
      std::vector<std::vector<int64_t>> values(kWorks);
      std::vector<Work> works;
      const int next = (rank.rank() + 1) % 3;
      const int previous = (rank.rank() + 2) % 3;
      std::vector<int64_t> out(500, rank.rank() + round);
      std::vector<int64_t> in(500, -1);
      works.push_back(background.send_async(out.data(), out.size(), zbcclInt64, next));
      works.push_back(background.recv_async(in.data(), in.size(), zbcclInt64, previous));
      for (size_t w = 0; w < kWorks; ++w) {
        values[w].assign(1 + w * 700, rank.rank() + round + static_cast<int64_t>(w));
        works.push_back(background.all_reduce_async(values[w].data(), values[w].data(),
                                                    values[w].size(), zbcclInt64));
      }
      run_calls(comm.get(), rank.rank(), seed_of(3, static_cast<uint64_t>(round)), 6);
      for (Work& work : works) work.wait();
      for (const int64_t value : in) ASSERT_EQ(previous + round, value);
      for (size_t w = 0; w < kWorks; ++w) {
        for (const int64_t value : values[w]) {
          ASSERT_EQ(3 + 3 * (round + static_cast<int64_t>(w)), value);
        }
      }
    }
    maker.join();
    parent.destroy();
    background.destroy();
    comm.barrier();
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
