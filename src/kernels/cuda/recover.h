// Launch of what takes a team back into use after its ranks' calls did not agree. Host code
// includes this.
#pragma once

#include "kernels/cuda/launch.h"

namespace zbccl::cuda {

// Waits until every rank has done with what it enqueued before, and gives all the same state: last
// epoch, last message, empty landing memory. `generation` counts, on every rank alike, how often
// that has been done; a team that is there already, as where a graph is replayed, is left alone. So
// is one that has failed otherwise.
cudaError_t launch_recover(const TeamView& view, uint32_t generation, cudaStream_t stream);
cudaError_t load_recover();

}  // namespace zbccl::cuda
