// The model's weights, cut to what one rank computes. Matrices stay in bf16.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "bfloat16.h"
#include "config.h"
#include "safetensors.h"
#include "shard.h"

namespace llm {

// Row-major [rows, columns]; y = W x.
struct Matrix {
  int rows = 0;
  int columns = 0;
  std::vector<Bfloat16> values;

  std::span<const Bfloat16> row(int index) const {
    return std::span(values).subspan(static_cast<size_t>(index) * columns, columns);
  }
};

struct Expert {
  Matrix gate;  // [hidden part, dim]
  Matrix up;    // [hidden part, dim]
  Matrix down;  // [dim, hidden part]
};

struct LayerWeights {
  std::vector<float> attention_norm;
  Matrix q;    // [head part, dim]
  Matrix k;    // [kv head part, dim]
  Matrix v;    // [kv head part, dim]
  Matrix out;  // [dim, head part]
  std::vector<float> expert_norm;
  Matrix router;                // [experts, dim]; whole on every rank
  std::vector<Expert> experts;  // those of the shard
};

struct Weights {
  Config config;
  Shard shard;
  Matrix embedding;  // [vocab, dim]; whole on every rank
  Matrix head;       // [vocab part, dim]: rows of the embedding
  std::vector<float> norm;
  std::vector<LayerWeights> layers;

  size_t bytes() const;  // of this rank's matrices
};

// Throws Error where a tensor is missing, of another type or shape, or unknown to the model.
Weights load_weights(const Archive& archive, const Config& config, const Shard& shard);

// The content of a file. Throws Error where it cannot be read.
std::vector<std::byte> read_file(const std::string& path);

}  // namespace llm
