#include "weights_builder.h"

#include <fmt/core.h>

#include <cstring>
#include <random>

#include "error.h"
#include "safetensors.h"

namespace llm::test {
namespace {

// Appends one bf16 tensor to the header and the data.
class Writer {
 public:
  explicit Writer(uint32_t seed) : random_(seed) {}

  void add(const std::string& name, const std::vector<uint64_t>& shape, float scale, float mean) {
    size_t count = 1;
    for (const uint64_t extent : shape) count *= extent;
    const size_t begin = data_.size();
    for (size_t i = 0; i < count; ++i) {
      const float value = mean + scale * std::uniform_real_distribution<float>(-1, 1)(random_);
      uint32_t bits = 0;
      std::memcpy(&bits, &value, sizeof bits);
      data_.push_back(static_cast<std::byte>(bits >> 16));
      data_.push_back(static_cast<std::byte>(bits >> 24));
    }
    header_[name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }

  std::vector<std::byte> finish(const std::map<std::string, std::string>& metadata) {
    header_["__metadata__"] = metadata;
    std::vector<std::byte> file = make_file(header_.dump(), 0);
    file.insert(file.end(), data_.begin(), data_.end());
    return file;
  }

 private:
  std::mt19937 random_;
  nlohmann::json header_ = nlohmann::json::object();
  std::vector<std::byte> data_;
};

}  // namespace

std::vector<std::byte> make_file(uint64_t header_length, std::string_view header,
                                 size_t data_bytes) {
  std::vector<std::byte> file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<std::byte>(header_length >> (8 * i)));
  for (const char c : header) file.push_back(static_cast<std::byte>(c));
  file.resize(file.size() + data_bytes);
  return file;
}

std::vector<std::byte> make_file(std::string_view header, size_t data_bytes) {
  return make_file(header.size(), header, data_bytes);
}

std::map<std::string, std::string> make_metadata(const Config& config) {
  const auto number = [](auto value) { return fmt::format("{}", value); };
  return {{"format", "zbccl-moe-lm"},
          {"version", "1"},
          {"dim", number(config.dim)},
          {"layers", number(config.layers)},
          {"heads", number(config.heads)},
          {"kv_heads", number(config.kv_heads)},
          {"head_dim", number(config.head_dim)},
          {"experts", number(config.experts)},
          {"experts_per_token", number(config.experts_per_token)},
          {"expert_hidden", number(config.expert_hidden)},
          {"vocab", number(config.vocab)},
          {"context", number(config.context)},
          {"rope_base", number(config.rope_base)},
          {"norm_eps", number(config.norm_eps)}};
}

std::string parse_error(const std::vector<std::byte>& file) {
  try {
    (void)parse_safetensors(file);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

Config small_config() {
  Config config;
  config.dim = 40;
  config.layers = 2;
  config.heads = 10;
  config.kv_heads = 5;
  config.head_dim = 6;
  config.experts = 4;
  config.experts_per_token = 2;
  config.expert_hidden = 22;
  config.vocab = 256;
  config.context = 48;
  config.rope_base = 10000;
  config.norm_eps = 1e-5;
  return config;
}

std::vector<std::byte> make_model(const Config& config, uint32_t seed) {
  const auto n = [](int value) { return static_cast<uint64_t>(value); };
  const uint64_t dim = n(config.dim);
  const uint64_t inner = n(config.heads * config.head_dim);
  const uint64_t kv_inner = n(config.kv_heads * config.head_dim);
  const uint64_t experts = n(config.experts);
  const uint64_t hidden = n(config.expert_hidden);
  Writer writer(seed);
  writer.add("embedding.weight", {n(config.vocab), dim}, 1.0f, 0);
  for (int i = 0; i < config.layers; ++i) {
    const std::string prefix = fmt::format("layers.{}.", i);
    writer.add(prefix + "attention_norm.weight", {dim}, 0.2f, 1);
    writer.add(prefix + "attention.q.weight", {inner, dim}, 0.3f, 0);
    writer.add(prefix + "attention.k.weight", {kv_inner, dim}, 0.3f, 0);
    writer.add(prefix + "attention.v.weight", {kv_inner, dim}, 0.3f, 0);
    writer.add(prefix + "attention.out.weight", {dim, inner}, 0.3f, 0);
    writer.add(prefix + "expert_norm.weight", {dim}, 0.2f, 1);
    writer.add(prefix + "experts.router.weight", {experts, dim}, 0.3f, 0);
    writer.add(prefix + "experts.gate", {experts, hidden, dim}, 0.3f, 0);
    writer.add(prefix + "experts.up", {experts, hidden, dim}, 0.3f, 0);
    writer.add(prefix + "experts.down", {experts, dim, hidden}, 0.3f, 0);
  }
  writer.add("norm.weight", {dim}, 0.2f, 1);
  return writer.finish(make_metadata(config));
}

}  // namespace llm::test
