// ExpertParallel on GPUs: routing, tokens and results stay in device memory, and nothing waits for
// the host. The outputs have room for every token at every expert here, so their places are known
// before what comes is. One thread.
#pragma once

#include <cuda_runtime.h>

#include <zbccl/moe.hpp>

#include "config.h"
#include "cuda_ops.h"
#include "parallel.h"

namespace llm {

class CudaExpertParallel {
 public:
  // For at most `max_tokens` tokens of all ranks together, and experts of `width` hidden units.
  // `parallel` has a group and outlives this. Uses the current device. Throws Error where rows of
  // the model cannot be dispatched.
  CudaExpertParallel(Parallel& parallel, const Config& config, int width, int max_tokens);
  ~CudaExpertParallel();
  CudaExpertParallel(const CudaExpertParallel&) = delete;
  CudaExpertParallel& operator=(const CudaExpertParallel&) = delete;

  // Sends `tokens` rows [n, dim] to the experts of their routes [n, experts per token]; n may be 0.
  void dispatch(const float* tokens, const Route* routes, int n, const zbcclCall_t* how);
  // What this rank's experts give for the rows that came. `most`: tokens of all ranks.
  void run(const cuda::DeviceExpert* experts, int most, cudaStream_t on);
  // The weighted sums for this rank's tokens.
  void combine(float* sums, const zbcclCall_t* how);

 private:
  int64_t dim_;
  int topk_;
  int width_;
  int capacity_;
  int local_ = 0;
  zbccl::Moe moe_;
  zbccl::MoeHandle handle_;
  int32_t* chosen_ = nullptr;  // [tokens, experts per token]
  float* weights_ = nullptr;   // the same
  int32_t* counts_ = nullptr;  // [local experts]
  // [local experts, capacity, dim or width]; what peers reach is from zbccl's pool.
  float* arrived_ = nullptr;
  float* hidden_ = nullptr;
  float* results_ = nullptr;
};

}  // namespace llm
