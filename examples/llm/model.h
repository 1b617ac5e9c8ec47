// What generates: a model that takes tokens and gives logits, on the CPU (engine.h) or on GPUs
// (cuda_engine.h).
#pragma once

#include <cstdint>
#include <span>

#include "config.h"
#include "parallel.h"

namespace llm {

using Token = uint8_t;  // one byte of text

enum class Want { kLastLogits, kAllLogits };

class Model {
 public:
  virtual ~Model() = default;
  virtual const Config& config() const = 0;
  virtual const Parallel& parallel() const = 0;
  // Forgets every token.
  virtual void reset() = 0;

  // Collective: every rank gives the same tokens. Appends them to the sequence and returns the
  // logits [1 or tokens, vocab] in host memory, the same bits on every rank, valid until the next
  // call. Throws Error where the tokens do not fit the batch or the context.
  virtual std::span<const float> forward(std::span<const Token> tokens, Want want) = 0;
};

}  // namespace llm
