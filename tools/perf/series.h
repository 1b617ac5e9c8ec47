// The times of many calls, in batches that all ranks begin together.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>
#include <zbccl/zbccl.hpp>

#include "perf/report.h"

namespace zbccl::tools {

class Series {
 public:
  // Collective.
  void run_batch(Communicator& comm, int calls, const std::function<void()>& call) {
    using Clock = std::chrono::steady_clock;
    using Microseconds = std::chrono::duration<double, std::micro>;
    if (calls <= 0) return;
    // Growing it between two calls would be taken for their time.
    samples_.reserve(samples_.size() + static_cast<size_t>(calls));
    comm.barrier();
    const auto begin = Clock::now();
    auto last = begin;
    for (int i = 0; i < calls; ++i) {
      call();
      const auto now = Clock::now();
      samples_.push_back(Microseconds(now - last).count());
      last = now;
    }
    totals_.push_back(Microseconds(last - begin).count());
  }

  // Collective. The mean is of the slowest rank in each batch, the percentiles of the slowest rank
  // in each call.
  Timing timing(Communicator& comm) const {
    const size_t calls = samples_.size();
    if (calls == 0) return {};
    Buffer<double> slowest(calls + totals_.size());
    std::copy(samples_.begin(), samples_.end(), slowest.begin());
    std::copy(totals_.begin(), totals_.end(), slowest.begin() + calls);
    comm.all_reduce(slowest.span(), zbcclMax);
    double total = 0;
    for (size_t i = calls; i < slowest.size(); ++i) total += slowest[i];
    std::sort(slowest.begin(), slowest.begin() + calls);
    return {total / static_cast<double>(calls), slowest[(calls - 1) / 2],
            slowest[(calls - 1) * 99 / 100]};
  }

 private:
  std::vector<double> samples_;
  std::vector<double> totals_;
};

}  // namespace zbccl::tools
