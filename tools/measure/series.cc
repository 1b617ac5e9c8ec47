#include "measure/series.h"

#include <algorithm>
#include <chrono>

namespace zbccl::tools {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMinCalls = 5;
constexpr int kMaxCalls = 20'000;

double microseconds(Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

}  // namespace

int calls_that_fit(Communicator& comm, double seconds, std::vector<double> trials) {
  std::sort(trials.begin(), trials.end());
  const double median = std::max(trials[trials.size() / 2], 1e-9);
  Buffer<int64_t> agreed(1);
  agreed[0] = std::clamp(static_cast<int>(std::min(seconds / median, 1e9)), kMinCalls, kMaxCalls);
  comm.broadcast(agreed.span(), 0);
  return static_cast<int>(agreed[0]);
}

Series::Series(int calls) : samples_(static_cast<size_t>(std::max(calls, 0))) {
  totals_.reserve(16);
}

void Series::run_batch(Communicator& comm, int calls, const std::function<void()>& call) {
  if (calls <= 0) return;
  double* sample = samples_.data() + done_;
  comm.barrier();
  const auto begin = Clock::now();
  auto last = begin;
  for (int i = 0; i < calls; ++i) {
    call();
    const auto now = Clock::now();
    *sample++ = microseconds(now - last);
    last = now;
  }
  totals_.push_back(microseconds(last - begin));
  done_ += static_cast<size_t>(calls);
}

void Series::run_apart(Communicator& comm, int calls, const std::function<void()>& before,
                       const std::function<void()>& call, const std::function<void()>& after) {
  for (int i = 0; i < calls; ++i) {
    before();
    comm.barrier();
    const auto begin = Clock::now();
    call();
    samples_[done_++] = microseconds(Clock::now() - begin);
    after();
  }
  apart_ = true;
}

Timing Series::timing(Communicator& comm) const {
  const size_t calls = done_;
  if (calls == 0) return {};
  Buffer<double> slowest(calls + totals_.size());
  std::copy_n(samples_.begin(), calls, slowest.begin());
  std::copy(totals_.begin(), totals_.end(), slowest.begin() + calls);
  comm.all_reduce(slowest.span(), zbcclMax);
  double total = 0;
  for (size_t i = calls; i < slowest.size(); ++i) total += slowest[i];
  if (apart_) {
    for (size_t i = 0; i < calls; ++i) total += slowest[i];
  }
  std::sort(slowest.begin(), slowest.begin() + calls);
  return {total / static_cast<double>(calls), slowest[(calls - 1) / 2],
          slowest[(calls - 1) * 99 / 100]};
}

}  // namespace zbccl::tools
