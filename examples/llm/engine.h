// Runs the model on this rank's shard, together with the other ranks. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kv_cache.h"
#include "ops.h"
#include "parallel.h"
#include "weights.h"

namespace llm {

using Token = uint8_t;  // one byte of text

enum class Want { kLastLogits, kAllLogits };

class Engine {
 public:
  // `weights` is the shard of parallel's rank; both outlive the engine. A call of forward() takes
  // at most `max_batch` tokens.
  Engine(const Weights& weights, Parallel& parallel, int max_batch);

  const Config& config() const { return config_; }
  const Parallel& parallel() const { return parallel_; }
  int length() const { return cache_.length(); }
  size_t cache_bytes() const { return cache_.bytes(); }
  // Forgets every token.
  void reset() { cache_.set_length(0); }

  // Collective: every rank gives the same tokens. Appends them to the sequence and returns the
  // logits [1 or tokens, vocab], the same bits on every rank, valid until the next call. Throws
  // Error where the tokens do not fit the batch or the context.
  std::span<const float> forward(std::span<const Token> tokens, Want want);

 private:
  void attention(const LayerWeights& layer, int index, int tokens);
  void experts(const LayerWeights& layer, int tokens);
  void run_expert(const Expert& expert, std::span<const int> tokens,
                  std::span<const float> weights);
  std::span<const float> project(int first, int tokens);
  std::span<float> rows(std::vector<float>& memory, int tokens, int width) const {
    return std::span(memory).first(static_cast<size_t>(tokens) * width);
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
  std::vector<float> normed_;  // dim
  std::vector<float> q_, k_, v_, heads_out_;
  std::vector<float> scores_;  // [context]
  std::vector<float> router_logits_;
  std::vector<Route> routes_;
  std::vector<float> gathered_, gate_, up_, down_;  // of one expert's tokens
  std::vector<float> logits_;                       // vocab
  // What collectives work on: registered memory.
  zbccl::Buffer<float> partial_;       // [max_batch, dim]
  zbccl::Buffer<float> logits_parts_;  // [ranks, max_batch, vocab_stride]
};

}  // namespace llm
