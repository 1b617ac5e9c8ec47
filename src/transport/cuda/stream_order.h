// Keeps what one object enqueues on several streams in the order in which it enqueues it. One
// thread; the GPU is current.
#pragma once

#include <cuda_runtime_api.h>

#include "base/status.h"

namespace zbccl::cuda {

Result<bool> is_capturing(cudaStream_t stream);

class StreamOrder {
 public:
  StreamOrder() = default;
  StreamOrder(const StreamOrder&) = delete;
  StreamOrder& operator=(const StreamOrder&) = delete;
  Status open();
  // Once all of it is done, however that ends.
  void close();
  bool is_over() const { return !recorded_ || cudaEventQuery(event_) != cudaErrorNotReady; }

  // Puts what is enqueued next on `stream` behind everything that went to another. Not in a graph,
  // which is ordered when it is launched.
  Status before(cudaStream_t stream);
  // To be called after that.
  Status after(cudaStream_t stream);

 private:
  cudaEvent_t event_ = nullptr;
  cudaStream_t last_ = nullptr;
  bool recorded_ = false;  // event_ stands behind what was enqueued last
};

}  // namespace zbccl::cuda
