// Reductions with an operator that a user made.
#pragma once

#include <span>

#include "call.h"

namespace zbccl::nccl {

// On host memory by zbccl, on device memory by the real NCCL.
ncclResult_t run_premultiplied(std::span<const Call> calls);

}  // namespace zbccl::nccl
