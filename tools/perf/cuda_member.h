// What a rank of a GPU job needs before it can measure: its GPU, and a communicator on it beside
// one on host memory. One thread.
#pragma once

#include <zbccl/zbccl.hpp>

namespace zbccl::tools {

// Of a communicator that leaves the GPU alone.
zbcclConfig_t host_config();

// The GPU of a rank by the launcher's numbers.
int local_gpu(int rank);

// The driver and its context are there after this, and `device` is current.
void warm_up(int device);

struct MadeCommunicator {
  Communicator comm;
  double init_ms = 0;  // how long this rank took, once the ranks knew the id
};
// Collective over `control`. Settings of the environment that the library reads when a
// communicator is made are those of now.
MadeCommunicator device_communicator(Communicator& control, int device, int max_blocks);

}  // namespace zbccl::tools
