// What has gone wrong in kernels, as errors for people. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "kernels/cuda/team_view.h"

namespace zbccl::cuda {

// Whose kernels those are.
struct FailureContext {
  std::string team;
  int rank = 0;
  uint32_t epoch_base = 0;  // of the team's first operation, less one
};

// The error that a record stands for, which names this rank, its peer, the operation and its
// number, what was expected and what was seen.
Status describe_failure(const FailureRecord& record, const FailureContext& context);

// A call as an entry has it.
std::string describe_call(const uint32_t (&words)[kEntryWords]);
std::string describe_call(const Entry& entry);

// The ranks' calls did not agree: their team can be taken back into use.
bool can_recover(const FailureRecord& record);

}  // namespace zbccl::cuda
