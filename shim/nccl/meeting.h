// Where ranks of one machine meet for a new communicator without the help of the old one, which may
// have failed.
#pragma once

#include <zbccl/zbccl.h>

#include <chrono>

#include "identity.h"
#include "types.h"

namespace zbccl::nccl {

// Gives every caller with the same `place` the same unique id. `rank` is the caller's among
// `nranks`; rank 0 makes the id and hands it out. Processes of another user are not listened to.
ncclResult_t meet(const Identity& place, int rank, int nranks, std::chrono::milliseconds timeout,
                  zbcclUniqueId* id);

}  // namespace zbccl::nccl
