// The arithmetic of the model on one rank: FP32 activations, bf16 matrices, one thread.
//
// Sums run in an order that depends on the sizes alone, so a result has the same bits in every run
// of one build on one machine.
#pragma once

#include <span>
#include <vector>

#include "weights.h"

namespace llm {

// y[t, r] = sum over i of w[r, i] * x[t, i]; x is [tokens, w.columns], y is [tokens, w.rows].
void matmul(const Matrix& w, std::span<const float> x, std::span<float> y, int tokens);

// y[t, :] = x[t, :] / sqrt(mean of squares + eps) * weight
void rms_norm(std::span<const float> x, std::span<const float> weight, double eps,
              std::span<float> y, int tokens);

// y += factor * x
void add_scaled(std::span<const float> x, float factor, std::span<float> y);

// gate = silu(gate) * up
void swiglu(std::span<float> gate, std::span<const float> up);

void softmax(std::span<float> values);

// One query against `length` keys and values [length, head_dim]; `scores` has room for `length`.
void attend(std::span<const float> query, const float* keys, const float* values, int length,
            std::span<float> scores, std::span<float> out);

// cos and sin of position / base^(2i / head_dim), and the rotation of pairs (i, i + head_dim / 2).
class Rotary {
 public:
  Rotary(int head_dim, double base, int positions);
  void rotate(std::span<float> head, int position) const;

 private:
  int half_;
  std::vector<float> cos_, sin_;  // [positions, half]
};

struct Route {
  int expert;
  float weight;
};

// The `count` experts with the largest logits (the lower index where equal), each weighted by the
// softmax over the logits of those chosen.
void route(std::span<const float> logits, int count, std::span<Route> routes);

}  // namespace llm
