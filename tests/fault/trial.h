// One trial of a fault: ranks work, a controller that is no rank kills or stops one of them at a
// random moment, and everything that follows is checked: what the survivors are told and when, that
// they can go on without the victim, and that nothing is left of it.
#pragma once

#include <zbccl/zbccl.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>
#include <zbccl/zbccl.hpp>

#include "support/job.h"

namespace zbccl::test {

enum class Fault { kKill, kStop };

struct TrialOptions {
  Fault fault = Fault::kKill;
  const char* wait = "auto";  // ZBCCL_HOST_WAIT
  int ranks = 4;
  int victim = 0;
  uint64_t seed = 0;                       // of the moment
  std::chrono::microseconds window{8000};  // in which the moment lies, after all have begun
  bool from_start = false;  // begin before the communicator is made, which may then fail too
  std::vector<std::pair<std::string, std::string>> env = {};
};

// The first thing that went wrong.
struct Told {
  zbcclResult_t code = zbcclSuccess;
  std::string message;
};
// Right after the call, on its thread.
inline Told told(zbcclResult_t code) {
  return {code, code == zbcclSuccess ? std::string() : zbcclGetLastError()};
}

// What a rank does until it fails; called once on every rank, with the communicator of all.
using TrialBody = std::function<Told(zbcclComm_t comm, int victim)>;

// Milliseconds from the fault to each survivor's error, over all trials of a test.
class Times {
 public:
  void add(double milliseconds) { values_.push_back(milliseconds); }
  double quantile(double q) const;
  size_t size() const { return values_.size(); }

 private:
  std::vector<double> values_;
};

// Deadline of a communicator whose rank gets stopped.
std::chrono::milliseconds stop_timeout();

// Runs the trial and adds the survivors' times.
void run_trial(const TrialOptions& options, const TrialBody& body, Times* times);

// Runs `count` trials of `body`, alternately spinning and sleeping, and asserts how soon the
// survivors were told. Fewer under a sanitizer.
void run_trials(Fault fault, int count, const TrialBody& body, const TrialOptions& base = {});

}  // namespace zbccl::test
