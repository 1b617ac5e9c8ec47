// Chooses the next token from logits. A pure function of logits, position and seed, so every rank
// and every rerun chooses alike. Any thread.
#pragma once

#include <cstdint>
#include <span>

#include "engine.h"

namespace llm {

struct Choice {
  Token token = 0;
  // By how much the chosen token's score beats the next best: a difference of logits below half of
  // it cannot change the choice.
  float margin = 0;
};

class Sampler {
 public:
  // temperature 0: the largest logit; else a draw from softmax(logits / temperature).
  Sampler(double temperature, uint64_t seed) : temperature_(temperature), seed_(seed) {}
  Choice choose(std::span<const float> logits, uint64_t position) const;

 private:
  double temperature_;
  uint64_t seed_;
};

}  // namespace llm
