// The times of many calls, which all ranks begin together.
//
// A sample is the difference of two clock readings and so contains one of them, some 25 ns. Its
// memory is there and written before the first call, so that nothing but the call is timed.
#pragma once

#include <functional>
#include <vector>
#include <zbccl/zbccl.hpp>

namespace zbccl::tools {

// Of many calls, the slowest rank's time each: mean and percentiles in microseconds.
struct Timing {
  double mean = 0;
  double p50 = 0;
  double p99 = 0;
};

// Collective: as many calls as fit in `seconds` where each takes the median of `trials` (in
// seconds, at least one), 5 to 20000. Rank 0 decides for all.
int calls_that_fit(Communicator& comm, double seconds, std::vector<double> trials);

class Series {
 public:
  // For at most `calls` calls.
  explicit Series(int calls);

  // Collective: calls one behind the other, begun together.
  void run_batch(Communicator& comm, int calls, const std::function<void()>& call);
  // Collective: each call begun together, `before` before that and `after` after it. Only the calls
  // are timed.
  void run_apart(Communicator& comm, int calls, const std::function<void()>& before,
                 const std::function<void()>& call, const std::function<void()>& after);

  // Collective. The percentiles are of the slowest rank in each call; so is the mean of calls run
  // apart, that of batches is of the slowest rank in each batch.
  Timing timing(Communicator& comm) const;

 private:
  std::vector<double> samples_;
  std::vector<double> totals_;
  size_t done_ = 0;
  bool apart_ = false;  // no batch: each call by itself
};

}  // namespace zbccl::tools
