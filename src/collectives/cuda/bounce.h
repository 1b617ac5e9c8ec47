// Copies between a GPU and any host memory, through two pieces of pinned memory in turn. Host
// memory is not pinned itself: a driver may wait for running kernels before it does that, and the
// kernels wait for these copies. One thread; the GPU is current.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <vector>

#include "base/status.h"

namespace zbccl::cuda {

class Bounce {
 public:
  struct Piece {
    void* device;
    void* host;
    size_t bytes;
  };

  Bounce() = default;
  Bounce(const Bounce&) = delete;
  Bounce& operator=(const Bounce&) = delete;
  Status open();
  void close();

  // Return once everything is where it belongs.
  Status to_host(const std::vector<Piece>& pieces);
  Status to_device(const std::vector<Piece>& pieces);

 private:
  static constexpr size_t kBytes = size_t{2} << 20;

  struct Slot {
    void* memory = nullptr;
    cudaEvent_t done = nullptr;  // with the memory's last copy
  };
  std::array<Slot, 2> slots_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace zbccl::cuda
