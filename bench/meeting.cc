// How long two cores take to meet, without a library: each of two threads raises a flag in a line
// of its own and spins until it sees the other's. No call of two ranks can take less.
//   zbccl_bench_meeting
// Prints {"p50_us": ..., "least_us": ...} over batches of meetings; a batch counts with its mean.
#include <fmt/core.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "topology/machine.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBatches = 200;
constexpr int kMeetings = 500;

struct alignas(128) Flag {
  std::atomic<uint64_t> value{0};
};

void bind_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  // Where it is refused, the thread runs wherever it would.
  (void)sched_setaffinity(0, sizeof set, &set);
}

// The mean of each batch, in microseconds.
std::vector<double> meet(Flag& own, const Flag& other) {
  std::vector<double> batches;
  batches.reserve(kBatches);
  uint64_t number = 0;
  for (int batch = 0; batch < kBatches; ++batch) {
    const auto begin = Clock::now();
    for (int i = 0; i < kMeetings; ++i) {
      own.value.store(++number, std::memory_order_release);
      while (other.value.load(std::memory_order_acquire) < number) {
      }
    }
    const std::chrono::duration<double, std::micro> time = Clock::now() - begin;
    batches.push_back(time.count() / kMeetings);
  }
  return batches;
}

}  // namespace

int main() {
  const zbccl::topology::Cpus cpus = zbccl::topology::usable_cpus();
  if (cpus.size() < 2 || cpus.back() >= CPU_SETSIZE) {
    fmt::print(stderr, "zbccl_bench_meeting: two processors are needed, of {} that it may use\n",
               cpus.size());
    return 2;
  }
  // Those that `zbccl perf` gives to two ranks.
  const int first = cpus[0];
  const int second = cpus[cpus.size() / 2];
  Flag flags[2];
  std::thread peer([&] {
    bind_to(second);
    (void)meet(flags[1], flags[0]);
  });
  bind_to(first);
  std::vector<double> batches = meet(flags[0], flags[1]);
  peer.join();
  std::sort(batches.begin(), batches.end());
  fmt::print("{{\"p50_us\": {:.4f}, \"least_us\": {:.4f}}}\n", batches[batches.size() / 2],
             batches.front());
  return 0;
}
