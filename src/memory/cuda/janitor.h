// Unmaps what is no longer used: a driver may wait for running kernels before it unmaps, and
// neither a service thread nor a destructor may. Any thread.
#pragma once

#include <functional>

#include "base/clock.h"

namespace zbccl::cuda {

// Runs `job` on a thread of its own, after those given before.
void run_later(std::function<void()> job);
// True once every job given before the call has run; false at the deadline.
bool wait_for_janitor(Deadline deadline);

}  // namespace zbccl::cuda
