// Reductions with an operator that a user made.
#pragma once

#include <span>

#include "call.h"

namespace zbccl::nccl {

// The input is multiplied where it lies, on the host or on the GPU in the order of the stream.
ncclResult_t run_premultiplied(std::span<const Call> calls);

}  // namespace zbccl::nccl
