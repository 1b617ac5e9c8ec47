#include "collectives/cuda/copy_streams.h"

#include <algorithm>

#include "memory/cuda/driver.h"

namespace zbccl::cuda {

Result<std::unique_ptr<CopyStreams>> CopyStreams::open() {
  auto made = std::unique_ptr<CopyStreams>(new CopyStreams);
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&made->begun_, cudaEventDisableTiming),
                             "an event for copies");
  for (size_t i = 0; i < kStreams; ++i) {
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&made->streams_[i], cudaStreamNonBlocking),
                               "a stream for copies");
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&made->done_[i], cudaEventDisableTiming),
                               "an event for copies");
  }
  return made;
}

CopyStreams::~CopyStreams() {
  for (size_t i = 0; i < kStreams; ++i) {
    if (streams_[i] != nullptr) (void)cudaStreamDestroy(streams_[i]);
    if (done_[i] != nullptr) (void)cudaEventDestroy(done_[i]);
  }
  if (begun_ != nullptr) (void)cudaEventDestroy(begun_);
}

Status CopyStreams::begin(cudaStream_t stream) {
  caller_ = stream;
  copies_ = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventRecord(begun_, stream), "recording the begin of copies");
  return {};
}

Status CopyStreams::copy(void* to, const void* from, size_t bytes) {
  cudaStream_t stream = streams_[copies_ % kStreams];
  if (copies_++ < kStreams) {
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(stream, begun_, 0), "ordering copies");
  }
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream),
                             "copying to a peer");
  return {};
}

Status CopyStreams::end() {
  for (size_t i = 0; i < std::min(copies_, kStreams); ++i) {
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventRecord(done_[i], streams_[i]),
                               "recording the end of copies");
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(caller_, done_[i], 0), "ordering copies");
  }
  return {};
}

}  // namespace zbccl::cuda
