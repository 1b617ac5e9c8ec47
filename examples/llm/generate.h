// Generates text, compares it with another run's, and measures perplexity. One thread; collective
// over the model's ranks.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "model.h"
#include "sampler.h"

namespace llm {

struct Phase {
  int tokens = 0;  // that went through the model
  double seconds = 0;
  Costs costs;
};

struct Generation {
  std::vector<Token> tokens;
  std::vector<float> logits;  // [tokens, vocab]: what each token was chosen from
  float smallest_margin = 0;
  Phase prefill;  // the whole prompt in one batch
  Phase decode;   // then token by token
};

// `on_token` is called for each token as soon as it is known.
Generation generate(Model& model, const Sampler& sampler, std::span<const Token> prompt, int count,
                    const std::function<void(Token)>& on_token);

struct Comparison {
  int first_difference = -1;  // the first token that differs; -1: none
  // Over the tokens up to the first difference, whose contexts are the same.
  float largest_logit_difference = 0;
};
Comparison compare(const Generation& ours, const Generation& reference);
// Between the best and the second-best logit that token `index` was chosen from.
float margin_of(const Generation& generation, int index);

struct Perplexity {
  size_t predicted = 0;  // bytes
  double loss = 0;       // nats per byte
  double perplexity = 0;
  Phase work;
};

// Cuts `text` into windows of the model's context; every byte but the first of a window is
// predicted from those before it in the window.
Perplexity measure_perplexity(Model& model, std::span<const Token> text);

}  // namespace llm
