// One rank's NCCL communicator beside zbccl's, making the same calls on memory from cudaMalloc. One
// thread.
#pragma once

#include <optional>
#include <zbccl/zbccl.hpp>

#include "perf/cuda_runtime.h"
#include "perf/nccl_library.h"
#include "perf/operation.h"

namespace zbccl::tools {

class CudaNccl {
 public:
  // Collective over `control`'s ranks.
  CudaNccl(const NcclLibrary& library, Communicator& control);
  CudaNccl(const CudaNccl&) = delete;
  CudaNccl& operator=(const CudaNccl&) = delete;
  // Graphs with its calls have been destroyed before.
  ~CudaNccl();

  // False where NCCL has no such type.
  static bool has(const CallSpec& spec);
  // Enqueues one call. What NCCL has no function for is made of grouped sends and receives, or of a
  // reduction for each rank.
  void call(const CallSpec& spec, const Buffers& buffers, const Shape& shape, cudaStream_t stream);
  const std::string& version() const { return library_.version; }

 private:
  struct Call;
  void rooted(const Call& call);
  void exchange(const Call& call);
  void reduce_parts(const Call& call);

  const NcclLibrary& library_;
  int rank_;
  int ranks_;
  NcclComm comm_ = nullptr;
};

}  // namespace zbccl::tools
