// Calls whose inputs are made and whose outputs are checked on the device, so that thousands run
// without the host: in graphs, or one behind the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/gpu_job.h"
#include "gpu/kernels.h"

namespace zbccl::test {

enum class Checked { kAllReduce, kAllGather, kReduceScatter, kAllToAll, kBroadcast };
inline constexpr int kNumChecked = 5;
const char* checked_name(Checked operation);

// One rank's part of one call that is made again and again with changing data. Memory is made here:
// see GpuRank for when.
class CheckedCall {
 public:
  struct Shape {
    Checked operation = Checked::kAllReduce;
    zbcclDataType_t type = zbcclFloat32;
    size_t count = 1;  // of the smaller of input and output
    bool in_place = false;
    DeviceMemoryKind memory = DeviceMemoryKind::kPool;
  };
  CheckedCall(GpuRank& rank, const Shape& shape, uint32_t seed);

  // Each enqueues on `stream`. The step decides the data: the device's counter plus `step`.
  void fill(const CudaStream& stream, uint32_t step);
  void run(Communicator& comm, const CudaStream& stream);
  void check(const CudaStream& stream, uint32_t step);
  // What a caller may do right after a call: writes over its input.
  void spoil_input(const CudaStream& stream);
  void advance(const CudaStream& stream);
  // All of it, with the counter's step.
  void round(Communicator& comm, const CudaStream& stream);

  // Elements that were wrong so far; waits for the stream.
  uint64_t wrong(const CudaStream& stream) const;
  std::byte* output() const { return recv_; }
  size_t out_count() const { return out_count_; }

 private:
  size_t in_count() const;
  Source source(uint32_t step) const;

  Shape shape_;
  int rank_;
  int ranks_;
  uint32_t seed_;
  size_t in_count_;
  size_t out_count_;
  CudaMemory memory_;
  CudaMemory second_;
  CudaMemory state_;  // the counter, and how many were wrong
  std::byte* send_ = nullptr;
  std::byte* recv_ = nullptr;
};

}  // namespace zbccl::test
