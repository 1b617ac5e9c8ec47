// Runs the model on this rank's shard, together with the other ranks. One thread.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "expert_parallel.h"
#include "kv_cache.h"
#include "model.h"
#include "ops.h"
#include "weights.h"

namespace llm {

class Engine : public Model {
 public:
  // `weights` is the shard of parallel's rank; both outlive the engine. A call of forward() takes
  // at most `max_batch` tokens.
  Engine(const Weights& weights, Parallel& parallel, int max_batch);

  const Config& config() const override { return config_; }
  const Parallel& parallel() const override { return parallel_; }
  int length() const { return cache_.length(); }
  size_t cache_bytes() const { return cache_.bytes(); }
  void reset() override { cache_.set_length(0); }
  std::span<const float> forward(std::span<const Token> tokens, Want want) override;

 private:
  void attention(const LayerWeights& layer, int index, int tokens);
  void experts(const LayerWeights& layer, int tokens);
  void sliced_experts(const LayerWeights& layer, int tokens);
  void whole_experts(const LayerWeights& layer, int tokens);
  void run_expert(const Expert& expert, std::span<const int> tokens,
                  std::span<const float> weights);
  std::span<const float> project(int first, int tokens);
  static std::span<float> rows(std::span<float> memory, int tokens, int width) {
    return memory.first(static_cast<size_t>(tokens) * width);
  }

  const Weights& weights_;
  const Config& config_;
  const Shard& shard_;
  Parallel& parallel_;
  int max_batch_;
  Rotary rotary_;
  KvCache cache_;

  // Scratch, [max_batch, width] unless it says otherwise.
  std::vector<float> stream_;  // the residual stream, dim
  std::vector<float> q_, k_, v_, heads_out_;
  std::vector<float> scores_;  // [context]
  std::vector<float> router_logits_;
  std::vector<Route> routes_;
  std::vector<float> gathered_, gate_, up_, down_;  // of one expert's tokens
  std::vector<float> logits_;                       // vocab
  // What collectives work on: registered memory.
  zbccl::Buffer<float> normed_;        // [max_batch, dim]
  zbccl::Buffer<float> partial_;       // [max_batch, dim]
  zbccl::Buffer<float> logits_parts_;  // [ranks, max_batch, vocab_stride]
  std::optional<ExpertParallel> whole_experts_;
};

}  // namespace llm
