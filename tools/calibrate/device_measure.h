// Measures on this machine's GPUs, between real ranks, what the device plan's values are fitted to.
// A command built without CUDA has the same function, which refuses.
#pragma once

#include "calibrate/device_fit.h"

namespace zbccl::tools {

// Collective over the job that this process is a rank of, each with a GPU of its own; the result is
// right on rank 0. `seconds`: for each size and way.
DeviceMeasured measure_device_rank(double seconds);

}  // namespace zbccl::tools
