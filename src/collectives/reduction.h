// What the reducing collectives share: summing a range of every rank's input into one or all
// outputs.
#pragma once

#include <cstddef>

#include "base/status.h"
#include "collectives/collective.h"
#include "plan/plan.h"

namespace zbccl::collectives {

enum class Target { kOwnOutput, kAllOutputs };

// Reduces elements [range) of every rank's shown input, in rank order. kOwnOutput: to call.recv[0,
// range.size()). kAllOutputs: to the same range of every rank's shown output. The team has entered
// the operation.
Status reduce_range(Context& context, const Collective& call, plan::Range range, Target target);

// One-shot: reduces elements [range) of every rank's outbox to call.recv[0, range.size()).
void reduce_outboxes(Context& context, const Collective& call, plan::Range range);

// Leaves this rank's input in the outbox of the operation to be entered, counted as landing.
void fill_outbox(Context& context, const void* data, size_t bytes);

}  // namespace zbccl::collectives
