// Streams beside a caller's for copies that are to run at the same time. One thread; the GPU is
// current.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <memory>

#include "base/status.h"

namespace zbccl::cuda {

class CopyStreams {
 public:
  static Result<std::unique_ptr<CopyStreams>> open();
  CopyStreams(const CopyStreams&) = delete;
  CopyStreams& operator=(const CopyStreams&) = delete;
  // After what is on them.
  ~CopyStreams();

  // Between begin() and end(): copies that come behind what is on `stream`, and that what is
  // enqueued there later comes behind. In a graph where `stream` is captured.
  Status begin(cudaStream_t stream);
  Status copy(void* to, const void* from, size_t bytes);
  Status end();

 private:
  CopyStreams() = default;

  static constexpr size_t kStreams = 4;
  std::array<cudaStream_t, kStreams> streams_{};
  std::array<cudaEvent_t, kStreams> done_{};
  cudaEvent_t begun_ = nullptr;
  cudaStream_t caller_ = nullptr;
  size_t copies_ = 0;  // since begin()
};

}  // namespace zbccl::cuda
