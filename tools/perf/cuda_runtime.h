// Owners of what a GPU benchmark makes with the CUDA runtime. Each belongs to the device that was
// current when it was made; one thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>

#include "perf/options.h"

namespace zbccl::tools {

// Throws std::runtime_error with `what` and the runtime's name and text of the error.
void check_cuda(cudaError_t error, const char* what);

// A stream that the legacy default stream does not wait for.
class CudaStream {
 public:
  CudaStream();
  cudaStream_t get() const { return stream_.get(); }
  void wait() const;  // until everything enqueued is done

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const { (void)cudaStreamDestroy(stream); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Destroy> stream_;
};

class CudaEvent {
 public:
  CudaEvent();
  void record(const CudaStream& stream) const;
  // Microseconds from `earlier` to this one; both have come to pass.
  double since(const CudaEvent& earlier) const;

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Destroy> event_;
};

// What `enqueue` puts on the stream, captured once.
class CudaGraph {
 public:
  CudaGraph(const CudaStream& stream, const std::function<void()>& enqueue);
  void launch(const CudaStream& stream) const;

 private:
  struct Destroy {
    void operator()(cudaGraphExec_t graph) const { (void)cudaGraphExecDestroy(graph); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, Destroy> graph_;
};

// Memory of a GPU.
class CudaMemory {
 public:
  CudaMemory(size_t bytes, DeviceMemoryKind kind, int device);
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;
  ~CudaMemory();
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  // Different numbers of either sign, none of them NaN in types of 16 bits and more: what is timed
  // should not be the same everywhere, nor special.
  void fill_with_numbers() const;

 private:
  void* data_ = nullptr;
  size_t bytes_;
  DeviceMemoryKind kind_;
};

// "12.8" of 12080.
std::string cuda_version_text(int version);

}  // namespace zbccl::tools
