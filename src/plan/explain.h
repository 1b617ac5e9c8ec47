// Why a call is done in the way it is: the plan's own choice, the limits that it met on the way,
// and what the other ways would cost. Pure functions, for people who ask; no call goes through
// here.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "plan/cost.h"
#include "plan/device_plan.h"
#include "plan/plan.h"

namespace zbccl::plan {

struct Question {
  Operation operation = Operation::kAllReduce;
  uint64_t bytes = 0;  // the larger of what a rank gives and gets
  DataType type = DataType::kBf16;
  int nranks = 1;
  uint64_t hidden = 4096;  // all_reduce_rms_norm: elements of a row
  int max_blocks = 0;      // of a call on device memory; 0: no limit
};

// One way to do the call.
struct Candidate {
  const char* algorithm = "";
  const char* how = "";  // its protocol, in a sentence
  bool chosen = false;
  std::string why_not;   // "" where it can serve the call
  uint64_t traffic = 0;  // device: over the link of the busiest rank; host: read and written
  uint64_t landing = 0;  // left in a rank's library memory on the way
  std::optional<double> us;
};

// A limit that the choice asked about, in the order in which it did.
struct Limit {
  std::string name;
  uint64_t bytes = 0;
  bool at_most = true;  // else at least
  bool within = false;
  const char* algorithm = "";  // which it is for
};

struct Explanation {
  const char* algorithm = "";
  std::string why;
  uint64_t compared = 0;  // what the limits are for: bytes of a buffer, or of a block of it
  std::vector<Limit> limits;
  std::vector<Candidate> candidates;  // the chosen one, those that can serve by time, the others
  // Device memory.
  int blocks = 0;
  int threads = 0;
  bool overlap = false;  // its kernel may begin in the shadow of the last one
};

// Operations that have a plan: not send, recv and those of MoE, and not for types that they do not
// have on the device.
bool has_plan(Operation operation);
bool has_type(Operation operation, DataType type);

// What the plan is asked for such a call.
DeviceCall device_call(const Question& question, const DeviceTuning& tuning);

Explanation explain(const Question& question, const DeviceTuning& tuning,
                    std::span<const DeviceCost> measured);
Explanation explain(const Question& question, const Tuning& tuning, const HostCost& cost);

}  // namespace zbccl::plan
