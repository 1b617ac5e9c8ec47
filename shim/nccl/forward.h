// What is handed on to NVIDIA's NCCL: through a shadow, a communicator there with the same ranks,
// which is made when it is first needed. Handles of the two libraries never mix.
#pragma once

#include "communicator.h"
#include "real.h"

namespace zbccl::nccl {

// Collective over the communicator's ranks where there is no shadow yet, and then needs zbccl's
// communicator to be idle.
ncclResult_t need_shadow(ncclComm* comm, const char* asker, const Real** real);
// Where there is one.
void drop_shadow(ncclComm* comm);

}  // namespace zbccl::nccl
