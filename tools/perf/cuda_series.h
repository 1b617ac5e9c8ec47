// The times of many calls on a stream: of replays of a CUDA graph, or of batches of launches.
//
// A sample is the time from the end of one replay to the end of the next, on the device's clock,
// over the calls in it. The replay before the first sample is not timed: it is what lets the ranks
// begin together. One thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>
#include <zbccl/zbccl.hpp>

#include "perf/cuda_runtime.h"
#include "perf/report.h"

namespace zbccl::tools {

class CudaSeries {
 public:
  // `call` enqueues one call. A graph of `calls` of them is captured here.
  CudaSeries(const CudaStream& stream, std::function<void()> call, int calls, bool graph);

  // Collective: `replays` samples more.
  void run(Communicator& control, int replays);
  // Collective. Of the slowest rank in each sample.
  Timing timing(Communicator& control) const;

 private:
  void replay() const;

  const CudaStream& stream_;
  std::function<void()> call_;
  int calls_;
  std::optional<CudaGraph> graph_;
  std::vector<CudaEvent> events_;
  std::vector<double> samples_;
};

// How often a series is to run: the same on every rank.
struct CudaPlan {
  int calls = 1;    // in a sample
  int replays = 1;  // in a round
};
// Collective. Samples of about a millisecond of 2 to 50 calls, as many as fit in `seconds` over
// `rounds`, or as `iterations` calls need.
CudaPlan plan_series(Communicator& control, const CudaStream& stream,
                     const std::function<void()>& call, const PerfOptions& options, int rounds);

}  // namespace zbccl::tools
