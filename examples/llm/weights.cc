#include "weights.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "error.h"

namespace llm {
namespace {

// Reads tensors and counts them, so that a file with others in it is noticed.
class Loader {
 public:
  Loader(const Archive& archive, const Config& config, const Shard& shard)
      : archive_(archive), config_(config), shard_(shard) {}

  Weights load() {
    const int dim = config_.dim;
    Weights weights;
    weights.config = config_;
    weights.shard = shard_;
    weights.embedding = matrix("embedding.weight", {config_.vocab, dim}, {0, config_.vocab});
    weights.head = matrix("embedding.weight", {config_.vocab, dim}, shard_.vocab);
    weights.norm = vector("norm.weight");
    read_ += 2;
    for (int i = 0; i < config_.layers; ++i) {
      weights.layers.push_back(layer(fmt::format("layers.{}.", i)));
    }
    if (archive_.tensors.size() != read_) {
      fail("weights: the file has {} tensors, a model of its dimensions {}",
           archive_.tensors.size(), read_);
    }
    return weights;
  }

 private:
  struct Extents {
    int rows;
    int columns;
  };

  LayerWeights layer(const std::string& prefix) {
    const int dim = config_.dim;
    const int inner = config_.heads * config_.head_dim;
    const int kv_inner = config_.kv_heads * config_.head_dim;
    const Range heads = scaled(shard_.heads);
    const Range kv_heads = scaled(shard_.kv_heads);
    LayerWeights layer;
    layer.attention_norm = vector(prefix + "attention_norm.weight");
    layer.q = matrix(prefix + "attention.q.weight", {inner, dim}, heads);
    layer.k = matrix(prefix + "attention.k.weight", {kv_inner, dim}, kv_heads);
    layer.v = matrix(prefix + "attention.v.weight", {kv_inner, dim}, kv_heads);
    layer.out = columns(prefix + "attention.out.weight", {dim, inner}, heads);
    layer.expert_norm = vector(prefix + "expert_norm.weight");
    layer.router =
        matrix(prefix + "experts.router.weight", {config_.experts, dim}, {0, config_.experts});
    experts(prefix + "experts.", layer.experts);
    read_ += 10;
    return layer;
  }

  void experts(const std::string& prefix, std::vector<Expert>& experts) {
    const Extents inward = {config_.expert_hidden, config_.dim};
    const Extents outward = {config_.dim, config_.expert_hidden};
    const Tensor& gate = stacked(prefix + "gate", inward);
    const Tensor& up = stacked(prefix + "up", inward);
    const Tensor& down = stacked(prefix + "down", outward);
    const size_t bytes =
        static_cast<size_t>(config_.expert_hidden) * config_.dim * sizeof(Bfloat16);
    const Range all = {0, config_.dim};
    for (int e = shard_.experts.begin; e < shard_.experts.end; ++e) {
      const size_t at = static_cast<size_t>(e) * bytes;
      experts.push_back({cut(gate.data.subspan(at, bytes), inward, shard_.hidden, all),
                         cut(up.data.subspan(at, bytes), inward, shard_.hidden, all),
                         cut(down.data.subspan(at, bytes), outward, all, shard_.hidden)});
    }
  }

  Range scaled(Range heads) const {
    return {heads.begin * config_.head_dim, heads.end * config_.head_dim};
  }

  const Tensor& stacked(const std::string& name, Extents extents) const {
    const uint64_t shape[] = {static_cast<uint64_t>(config_.experts),
                              static_cast<uint64_t>(extents.rows),
                              static_cast<uint64_t>(extents.columns)};
    return require_tensor(archive_, name, "BF16", shape);
  }

  const Tensor& plain(const std::string& name, Extents extents) const {
    const uint64_t shape[] = {static_cast<uint64_t>(extents.rows),
                              static_cast<uint64_t>(extents.columns)};
    return require_tensor(archive_, name, "BF16", shape);
  }

  Matrix matrix(const std::string& name, Extents extents, Range rows) const {
    return cut(plain(name, extents).data, extents, rows, {0, extents.columns});
  }

  Matrix columns(const std::string& name, Extents extents, Range columns) const {
    return cut(plain(name, extents).data, extents, {0, extents.rows}, columns);
  }

  std::vector<float> vector(const std::string& name) const {
    const uint64_t shape[] = {static_cast<uint64_t>(config_.dim)};
    const Tensor& tensor = require_tensor(archive_, name, "BF16", shape);
    const Matrix row = cut(tensor.data, {1, config_.dim}, {0, 1}, {0, config_.dim});
    std::vector<float> values;
    for (const Bfloat16 value : row.values) values.push_back(to_float(value));
    return values;
  }

  static Matrix cut(std::span<const std::byte> data, Extents extents, Range rows, Range columns) {
    Matrix matrix{rows.size(), columns.size(), {}};
    matrix.values.resize(static_cast<size_t>(rows.size()) * columns.size());
    const size_t row_bytes = columns.size() * sizeof(Bfloat16);
    for (int r = 0; r < rows.size(); ++r) {
      const size_t at = static_cast<size_t>(rows.begin + r) * extents.columns + columns.begin;
      std::memcpy(matrix.values.data() + static_cast<size_t>(r) * columns.size(),
                  data.data() + at * sizeof(Bfloat16), row_bytes);
    }
    return matrix;
  }

  const Archive& archive_;
  const Config& config_;
  const Shard& shard_;
  size_t read_ = 0;
};

}  // namespace

size_t Weights::bytes() const {
  size_t values = embedding.values.size() + head.values.size();
  for (const LayerWeights& layer : layers) {
    for (const Matrix* matrix : {&layer.q, &layer.k, &layer.v, &layer.out, &layer.router}) {
      values += matrix->values.size();
    }
    for (const Expert& expert : layer.experts) {
      values += expert.gate.values.size() + expert.up.values.size() + expert.down.values.size();
    }
  }
  return values * sizeof(Bfloat16);
}

Weights load_weights(const Archive& archive, const Config& config, const Shard& shard) {
  return Loader(archive, config, shard).load();
}

std::vector<std::byte> read_file(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    fail("cannot read '{}': {}", path, error ? error.message() : "not a regular file");
  }
  const std::uintmax_t size = std::filesystem::file_size(path);
  std::ifstream file(path, std::ios::binary);
  std::vector<std::byte> content(size);
  file.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(size));
  if (!file) fail("cannot read '{}': {}", path, std::strerror(errno));
  return content;
}

}  // namespace llm
