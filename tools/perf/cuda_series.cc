#include "perf/cuda_series.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace zbccl::tools {
namespace {

constexpr double kSampleMicroseconds = 1000;
constexpr int kFewestCalls = 2;
constexpr int kMostCalls = 50;
constexpr int kFewestReplays = 4;
constexpr int kMostReplays = 50;
constexpr int kEstimated = 5;

}  // namespace

CudaSeries::CudaSeries(const CudaStream& stream, std::function<void()> call, int calls, bool graph)
    : stream_(stream), call_(std::move(call)), calls_(calls) {
  if (!graph) return;
  graph_.emplace(stream_, [this] {
    for (int i = 0; i < calls_; ++i) call_();
  });
}

void CudaSeries::replay() const {
  if (graph_) return graph_->launch(stream_);
  for (int i = 0; i < calls_; ++i) call_();
}

void CudaSeries::run(Communicator& control, int replays) {
  while (events_.size() < static_cast<size_t>(replays) + 1) events_.emplace_back();
  stream_.wait();
  control.barrier();
  replay();
  events_[0].record(stream_);
  for (int i = 0; i < replays; ++i) {
    replay();
    events_[static_cast<size_t>(i) + 1].record(stream_);
  }
  stream_.wait();
  for (size_t i = 0; i < static_cast<size_t>(replays); ++i) {
    samples_.push_back(events_[i + 1].since(events_[i]) / calls_);
  }
}

Timing CudaSeries::timing(Communicator& control) const {
  if (samples_.empty()) return {};
  Buffer<double> slowest(samples_.size());
  std::copy(samples_.begin(), samples_.end(), slowest.begin());
  control.all_reduce(slowest.span(), zbcclMax);
  std::sort(slowest.begin(), slowest.end());
  const size_t last = slowest.size() - 1;
  const double total = std::accumulate(slowest.begin(), slowest.end(), 0.0);
  return {total / static_cast<double>(slowest.size()), slowest[last / 2], slowest[last * 99 / 100]};
}

CudaPlan plan_series(Communicator& control, const CudaStream& stream,
                     const std::function<void()>& call, const PerfOptions& options, int rounds) {
  for (int i = 0; i < std::max(options.warmup, 1); ++i) call();
  stream.wait();
  control.barrier();
  call();  // the ranks begin together after this one
  const CudaEvent begin;
  const CudaEvent end;
  begin.record(stream);
  for (int i = 0; i < kEstimated; ++i) call();
  end.record(stream);
  stream.wait();
  Buffer<double> slowest(1);
  slowest[0] = std::max(end.since(begin) / kEstimated, 0.5);
  control.all_reduce(slowest.span(), zbcclMax);
  const double estimate = slowest[0];

  CudaPlan plan;
  plan.calls =
      std::clamp(static_cast<int>(kSampleMicroseconds / estimate), kFewestCalls, kMostCalls);
  if (options.iterations > 0) {
    plan.calls = std::min(plan.calls, options.iterations);
    const int samples = (options.iterations + plan.calls - 1) / plan.calls;
    plan.replays = std::max((samples + rounds - 1) / rounds, 1);
    return plan;
  }
  const double samples = options.seconds * 1e6 / (estimate * plan.calls);
  plan.replays =
      std::clamp(static_cast<int>(std::lround(samples / rounds)), kFewestReplays, kMostReplays);
  return plan;
}

}  // namespace zbccl::tools
