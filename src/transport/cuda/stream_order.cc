#include "transport/cuda/stream_order.h"

#include <chrono>
#include <thread>

#include "memory/cuda/driver.h"

namespace zbccl::cuda {

Result<bool> is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaStreamIsCapturing(stream, &status), "asking for capture");
  return status != cudaStreamCaptureStatusNone;
}

Status StreamOrder::open() {
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming),
                             "an event for order");
  return {};
}

Status StreamOrder::before(cudaStream_t stream) {
  if (!recorded_ || stream == last_) return {};
  ZBCCL_ASSIGN_OR_RETURN(const bool capturing, is_capturing(stream));
  if (capturing) return {};
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(stream, event_, 0), "ordering two streams");
  return {};
}

Status StreamOrder::after(cudaStream_t stream) {
  ZBCCL_ASSIGN_OR_RETURN(const bool capturing, is_capturing(stream));
  if (capturing) return {};
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventRecord(event_, stream), "recording an event");
  last_ = stream;
  recorded_ = true;
  return {};
}

void StreamOrder::close() {
  if (event_ == nullptr) return;
  while (!is_over()) {
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  (void)cudaEventDestroy(event_);
  event_ = nullptr;
}

}  // namespace zbccl::cuda
