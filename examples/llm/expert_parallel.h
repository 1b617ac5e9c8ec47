// Experts that lie whole on one rank each: tokens travel to them and their results back, by zbccl's
// dispatch and combine. One thread; every call is collective.
#pragma once

#include <cstdint>
#include <span>
#include <zbccl/moe.hpp>

#include "config.h"
#include "ops.h"
#include "parallel.h"

namespace llm {

class ExpertParallel {
 public:
  // For at most `max_tokens` tokens of all ranks together. `parallel` has a group and outlives
  // this. Throws Error where rows of the model cannot be dispatched.
  ExpertParallel(Parallel& parallel, const Config& config, int max_tokens);

  // The rows of one expert of this rank: its tokens, and room for what it gives for them.
  struct Rows {
    int count = 0;
    std::span<const float> tokens;  // [count, dim]
    std::span<float> results;       // the same
  };

  // Sends this rank's tokens [n, dim] to the experts of their routes [n, experts per token]; both
  // may be empty. `tokens` is registered memory.
  void dispatch(std::span<const float> tokens, std::span<const Route> routes);
  // What came for the rank's expert `local`, in the order of its experts.
  Rows rows_of(int local);
  // Once every row's result is there: the weighted sums for this rank's tokens, into registered
  // memory.
  void combine(std::span<float> sums);

 private:
  Parallel& parallel_;
  int64_t dim_;
  int topk_;
  zbccl::Moe moe_;
  zbccl::MoeHandle handle_;
  // All of it registered.
  zbccl::Buffer<int32_t> chosen_;  // [tokens, experts per token]
  zbccl::Buffer<float> weights_;
  zbccl::Buffer<float> arrived_;  // [tokens * experts per token, dim]
  zbccl::Buffer<float> results_;
};

}  // namespace llm
