// The buffers of calls on their way between a GPU and host memory. The thread that makes the calls
// enqueues kernels that carry them (kernels/cuda/courier.h); another one copies what comes and goes
// through pinned memory. That one makes no call of CUDA: the first may be inside of one that waits
// for the stream and lets no other in, as the first launch of a kernel does that is loaded only
// then.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/status.h"
#include "collectives/cuda/buffers.h"
#include "collectives/cuda/mirror.h"
#include "kernels/cuda/courier.h"

namespace zbccl::cuda {

class Courier {
 public:
  // One call's.
  struct Trip {
    std::vector<CourierLeg> lifts;  // at least one
    uint32_t gate = 0;
    std::vector<CourierLeg> drops;
    uint32_t last = 0;  // number of all of it
  };
  // What waits ask: an error ends them.
  using Going = std::function<Status()>;

  Courier() = default;
  Courier(const Courier&) = delete;
  Courier& operator=(const Courier&) = delete;
  // The GPU is current, as in every call of the thread that makes the calls.
  Status open();
  void close();

  // The next trip, which has to be sent.
  Trip plan(const std::vector<DeviceRange>& in, const std::vector<DeviceRange>& out);
  // Enqueues it; `stream` goes on once it is over. After an error a part of it is enqueued.
  Status send(const Trip& trip, cudaStream_t stream) const;

  // On the other thread, in the order of the trips. Waits until what was enqueued before the trip
  // is over, and copies what it brings to the mirror.
  Status fetch(const Trip& trip, const Mirror& mirror, const Going& going) const;
  // Copies what is in the mirror to the GPU. Returns once all of it is on its way.
  Status deliver(const Trip& trip, const Mirror& mirror, const Going& going) const;
  // Lets the stream go on. What has not been delivered by then is not written.
  void end(const Trip& trip) const;

 private:
  CourierView view_;
  uint32_t planned_ = 0;
};

}  // namespace zbccl::cuda
