#include "collectives/cuda/completion.h"

#include "memory/cuda/driver.h"

namespace zbccl::cuda {

Result<SharedEvent> record_event(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                             "an event for a call");
  SharedEvent shared(event, [](cudaEvent_t it) { (void)cudaEventDestroy(it); });
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventRecord(event, stream), "recording a call's event");
  return shared;
}

Result<collectives::Completion> stream_completion(int device, cudaStream_t stream) {
  const DeviceGuard guard(device);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  ZBCCL_ASSIGN_OR_RETURN(const SharedEvent event, record_event(stream));
  // The engine goes before its communicator's shell does; the event says enough by then.
  return collectives::Completion([event](Status* status) {
    const cudaError_t code = cudaEventQuery(event.get());
    if (code == cudaErrorNotReady) return false;
    *status = code == cudaSuccess ? Status() : cuda_error(code, "waiting for a call on the device");
    return true;
  });
}

}  // namespace zbccl::cuda
