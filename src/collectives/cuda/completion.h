// When what has been enqueued on a stream is over, for other threads to ask.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "base/status.h"
#include "collectives/device_engine.h"

namespace zbccl::cuda {

using SharedEvent = std::shared_ptr<CUevent_st>;

// Behind what is on `stream` now, whose GPU is current.
Result<SharedEvent> record_event(cudaStream_t stream);

// The same for the handle of an asynchronous call.
Result<collectives::Completion> stream_completion(int device, cudaStream_t stream);

}  // namespace zbccl::cuda
