// The few questions that NCCL's interface asks of CUDA. The driver is found where the process has
// loaded it, and never needed: without it there is host memory only. Any thread.
#pragma once

#include <span>
#include <vector>

#include "types.h"

namespace zbccl::nccl::driver {

// GPU that the calling thread has a context on, or -1.
int current_device();
// GPUs that the process sees; loads the driver where it is installed.
int count_devices();
// False for host memory and anything that CUDA does not know.
bool is_device_memory(const void* address);

// The legacy default stream by its own name, which says that a stream is meant where null would
// not.
inline cudaStream_t legacy_stream() { return reinterpret_cast<cudaStream_t>(1); }

// Waits until `stream` has nothing more to do; an error where it is being captured, or where there
// is no driver.
ncclResult_t drain(cudaStream_t stream, int device);

// Whether the stream is being captured; where that cannot be asked, it is not.
bool is_capturing(cudaStream_t stream, int device);

// Several streams of one device as one: between the constructor and join() the first one follows
// all that the others hold, and after join() the others follow the first.
class Joint {
 public:
  Joint(std::vector<cudaStream_t> streams, int device) : streams_(std::move(streams)) {
    device_ = device;
  }
  ncclResult_t fork();
  ncclResult_t join();
  cudaStream_t stream() const { return streams_.front(); }

 private:
  std::vector<cudaStream_t> streams_;
  int device_ = -1;
};

// Makes the device the calling thread's, as cudaSetDevice does, while it lives.
class Current {
 public:
  explicit Current(int device);  // -1: leaves it as it is
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  bool pushed_ = false;
};

}  // namespace zbccl::nccl::driver
