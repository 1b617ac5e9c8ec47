#include "engine.h"

#include <algorithm>

#include "error.h"

namespace llm {

Engine::Engine(const Weights& weights, Parallel& parallel, int max_batch)
    : weights_(weights),
      config_(weights.config),
      shard_(weights.shard),
      parallel_(parallel),
      max_batch_(max_batch),
      rotary_(config_.head_dim, config_.rope_base, config_.context),
      cache_(config_.layers, shard_.kv_heads.size(), config_.context, config_.head_dim) {
  const auto width = [max_batch](int columns) { return static_cast<size_t>(max_batch) * columns; };
  stream_.resize(width(config_.dim));
  q_.resize(width(shard_.heads.size() * config_.head_dim));
  k_.resize(width(shard_.kv_heads.size() * config_.head_dim));
  v_.resize(k_.size());
  heads_out_.resize(q_.size());
  scores_.resize(static_cast<size_t>(config_.context));
  router_logits_.resize(width(config_.experts));
  routes_.resize(width(config_.experts_per_token));
  gathered_.resize(width(config_.dim));
  gate_.resize(width(shard_.hidden.size()));
  up_.resize(gate_.size());
  down_.resize(width(config_.dim));
  logits_.resize(width(config_.vocab));
  normed_ = Parallel::allocate(width(config_.dim));
  partial_ = Parallel::allocate(width(config_.dim));
  logits_parts_ = Parallel::allocate(width(shard_.vocab_stride) * shard_.size);
  // The padding of a short vocabulary part is gathered too; it is never read.
  std::fill(logits_parts_.begin(), logits_parts_.end(), 0.0f);
  if (weights.shard.experts_split == Experts::kWhole && parallel.has_group()) {
    whole_experts_.emplace(parallel, config_, max_batch);
  }
}

std::span<const float> Engine::forward(std::span<const Token> tokens, Want want) {
  const int count = static_cast<int>(tokens.size());
  if (count < 1 || count > max_batch_) {
    fail("a batch of {} tokens; the engine was made for 1 to {}", count, max_batch_);
  }
  if (cache_.length() + count > cache_.capacity()) {
    fail("{} tokens after {} exceed the model's context of {}", count, cache_.length(),
         cache_.capacity());
  }
  const int dim = config_.dim;
  for (int t = 0; t < count; ++t) {
    const auto row = weights_.embedding.row(tokens[t]);
    std::transform(row.begin(), row.end(), stream_.begin() + static_cast<std::ptrdiff_t>(t) * dim,
                   to_float);
  }
  const auto stream = rows(stream_, count, dim);
  const auto normed = rows(normed_.span(), count, dim);
  const auto partial = partial_.span().first(stream.size());
  for (int i = 0; i < config_.layers; ++i) {
    const LayerWeights& layer = weights_.layers[i];
    rms_norm(stream, layer.attention_norm, config_.norm_eps, normed, count);
    attention(layer, i, count);
    parallel_.all_reduce(Collective::kAttention, partial);
    add_scaled(partial, 1.0f, stream);
    rms_norm(stream, layer.expert_norm, config_.norm_eps, normed, count);
    experts(layer, count);
    add_scaled(partial, 1.0f, stream);
  }
  cache_.set_length(cache_.length() + count);
  return want == Want::kAllLogits ? project(0, count) : project(count - 1, 1);
}

// Leaves this rank's summand of the attention's output in partial_.
void Engine::attention(const LayerWeights& layer, int index, int tokens) {
  const int head_dim = config_.head_dim;
  matmul(layer.q, normed_, q_, tokens);
  matmul(layer.k, normed_, k_, tokens);
  matmul(layer.v, normed_, v_, tokens);
  const int heads = shard_.heads.size();
  const int kv_heads = shard_.kv_heads.size();
  const auto head_row = [head_dim](std::vector<float>& memory, int row) {
    return std::span(memory).subspan(static_cast<size_t>(row) * head_dim, head_dim);
  };
  for (int t = 0; t < tokens; ++t) {
    const int position = cache_.length() + t;
    for (int h = 0; h < kv_heads; ++h) {
      const auto key = head_row(k_, t * kv_heads + h);
      rotary_.rotate(key, position);
      cache_.put(index, h, position, key, head_row(v_, t * kv_heads + h));
    }
    for (int h = 0; h < heads; ++h) {
      const int kv_head =
          (shard_.heads.begin + h) / config_.queries_per_kv_head() - shard_.kv_heads.begin;
      const auto query = head_row(q_, t * heads + h);
      rotary_.rotate(query, position);
      attend(query, cache_.keys(index, kv_head), cache_.values(index, kv_head), position + 1,
             scores_, head_row(heads_out_, t * heads + h));
    }
  }
  matmul(layer.out, heads_out_, partial_.span(), tokens);
}

// Leaves the experts' output in partial_. Every rank routes alike, because the normed stream has
// the same bits everywhere.
void Engine::experts(const LayerWeights& layer, int tokens) {
  const int used = config_.experts_per_token;
  matmul(layer.router, normed_, router_logits_, tokens);
  for (int t = 0; t < tokens; ++t) {
    const auto logits = std::span<const float>(router_logits_)
                            .subspan(static_cast<size_t>(t) * config_.experts, config_.experts);
    route(logits, used, std::span(routes_).subspan(static_cast<size_t>(t) * used, used));
  }
  whole_experts_ ? whole_experts(layer, tokens) : sliced_experts(layer, tokens);
}

// Every rank sums its slice of every expert.
void Engine::sliced_experts(const LayerWeights& layer, int tokens) {
  const int used = config_.experts_per_token;
  std::fill_n(partial_.begin(), static_cast<size_t>(tokens) * config_.dim, 0.0f);
  std::vector<int> chosen;
  std::vector<float> weights;
  for (int e = 0; e < config_.experts; ++e) {
    chosen.clear();
    weights.clear();
    for (int i = 0; i < tokens * used; ++i) {
      if (routes_[i].expert == e) {
        chosen.push_back(i / used);
        weights.push_back(routes_[i].weight);
      }
    }
    if (!chosen.empty()) run_expert(layer.experts[e], chosen, weights);
  }
  parallel_.all_reduce(Collective::kExperts, rows(partial_.span(), tokens, config_.dim));
}

// Each rank sends a share of the tokens to their experts and adds up what they give; then every
// rank gets every sum.
void Engine::whole_experts(const LayerWeights& layer, int tokens) {
  const auto dim = static_cast<size_t>(config_.dim);
  const auto used = static_cast<size_t>(config_.experts_per_token);
  std::vector<size_t> counts;
  for (int rank = 0; rank < shard_.size; ++rank) {
    counts.push_back(static_cast<size_t>(part(tokens, shard_.size, rank).size()) * dim);
  }
  const Range mine = part(tokens, shard_.size, shard_.rank);
  const auto first = static_cast<size_t>(mine.begin);
  const auto count = static_cast<size_t>(mine.size());
  whole_experts_->dispatch(normed_.span().subspan(first * dim, count * dim),
                           std::span(routes_).subspan(first * used, count * used));
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    const Expert& expert = layer.experts[e];
    const ExpertParallel::Rows here = whole_experts_->rows_of(static_cast<int>(e));
    matmul(expert.gate, here.tokens, gate_, here.count);
    matmul(expert.up, here.tokens, up_, here.count);
    swiglu(rows(gate_, here.count, expert.gate.rows), rows(up_, here.count, expert.up.rows));
    matmul(expert.down, gate_, here.results, here.count);
  }
  whole_experts_->combine(partial_.span().subspan(first * dim, count * dim));
  parallel_.all_gather_v(Collective::kTokens, rows(partial_.span(), tokens, config_.dim), counts);
}

void Engine::run_expert(const Expert& expert, std::span<const int> tokens,
                        std::span<const float> weights) {
  const int count = static_cast<int>(tokens.size());
  const int dim = config_.dim;
  const auto row = [dim](std::span<float> memory, int index) {
    return memory.subspan(static_cast<size_t>(index) * dim, dim);
  };
  for (int i = 0; i < count; ++i) {
    const auto from = row(normed_.span(), tokens[i]);
    std::copy(from.begin(), from.end(), row(gathered_, i).begin());
  }
  matmul(expert.gate, gathered_, gate_, count);
  matmul(expert.up, gathered_, up_, count);
  swiglu(rows(gate_, count, expert.gate.rows), rows(up_, count, expert.up.rows));
  matmul(expert.down, gate_, down_, count);
  for (int i = 0; i < count; ++i) {
    add_scaled(row(down_, i), weights[i], row(partial_.span(), tokens[i]));
  }
}

// Logits of `tokens` rows of the stream from `first` on: each rank computes its part of the
// vocabulary, padded to the largest part.
std::span<const float> Engine::project(int first, int tokens) {
  const int dim = config_.dim;
  const auto stream = std::span<const float>(stream_).subspan(static_cast<size_t>(first) * dim);
  rms_norm(stream, weights_.norm, config_.norm_eps, normed_, tokens);
  const size_t stride = shard_.vocab_stride;
  const size_t count = tokens * stride;
  matmul(weights_.head, normed_, logits_, tokens);
  const int mine = shard_.vocab.size();
  for (int t = 0; t < tokens; ++t) {
    std::copy_n(logits_.begin() + static_cast<std::ptrdiff_t>(t) * mine, mine,
                logits_parts_.begin() + shard_.rank * count + t * stride);
  }
  parallel_.all_gather(Collective::kLogits, logits_parts_.span(), count);
  for (int r = 0; r < shard_.size; ++r) {
    const Range range = part(config_.vocab, shard_.size, r);
    for (int t = 0; t < tokens; ++t) {
      std::copy_n(logits_parts_.begin() + r * count + t * stride, range.size(),
                  logits_.begin() + static_cast<std::ptrdiff_t>(t) * config_.vocab + range.begin);
    }
  }
  return std::span<const float>(logits_).first(static_cast<size_t>(tokens) * config_.vocab);
}

}  // namespace llm
