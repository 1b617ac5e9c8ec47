#include "collectives/cuda/bounce.h"

#include <algorithm>

#include "kernels/reduce.h"
#include "memory/cuda/driver.h"

namespace zbccl::cuda {
namespace {

constexpr const char* kWhat = "copying the buffers of a call";

// Pieces of at most `most` bytes.
std::vector<Bounce::Piece> cut(const std::vector<Bounce::Piece>& pieces, size_t most) {
  std::vector<Bounce::Piece> parts;
  for (const Bounce::Piece& piece : pieces) {
    for (size_t at = 0; at < piece.bytes; at += most) {
      parts.push_back({static_cast<std::byte*>(piece.device) + at,
                       static_cast<std::byte*>(piece.host) + at, std::min(most, piece.bytes - at)});
    }
  }
  return parts;
}

}  // namespace

void Bounce::close() {
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  stream_ = nullptr;
  for (Slot& slot : slots_) {
    if (slot.done != nullptr) (void)cudaEventDestroy(slot.done);
    if (slot.memory != nullptr) (void)cudaFreeHost(slot.memory);
    slot = {};
  }
}

Status Bounce::open() {
  // Of the highest priority, and so in no queue behind a kernel that waits.
  int least = 0;
  int greatest = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                             "asking for priorities");
  ZBCCL_RETURN_IF_CUDA_ERROR(
      cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest),
      "a stream for copies");
  for (Slot& slot : slots_) {
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaHostAlloc(&slot.memory, kBytes, cudaHostAllocPortable),
                               "pinned memory for copies");
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming),
                               "an event for copies");
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.done, stream_), kWhat);
  }
  return {};
}

// The next part is on its way while the one before is copied on.
Status Bounce::to_host(const std::vector<Piece>& pieces) {
  const std::vector<Piece> parts = cut(pieces, kBytes);
  for (size_t i = 0; i <= parts.size(); ++i) {
    if (i < parts.size()) {
      const Slot& slot = slots_[i % 2];
      ZBCCL_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(slot.memory, parts[i].device, parts[i].bytes,
                                                 cudaMemcpyDeviceToHost, stream_),
                                 kWhat);
      ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.done, stream_), kWhat);
    }
    if (i == 0) continue;
    const Slot& slot = slots_[(i - 1) % 2];
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(slot.done), kWhat);
    kernels::copy(parts[i - 1].host, slot.memory, parts[i - 1].bytes, false);
  }
  return {};
}

Status Bounce::to_device(const std::vector<Piece>& pieces) {
  const std::vector<Piece> parts = cut(pieces, kBytes);
  for (size_t i = 0; i < parts.size(); ++i) {
    const Slot& slot = slots_[i % 2];
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(slot.done), kWhat);
    kernels::copy(slot.memory, parts[i].host, parts[i].bytes, false);
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(parts[i].device, slot.memory, parts[i].bytes,
                                               cudaMemcpyHostToDevice, stream_),
                               kWhat);
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.done, stream_), kWhat);
  }
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_), kWhat);
  return {};
}

}  // namespace zbccl::cuda
