#include "config.h"

#include <charconv>

#include "error.h"

namespace llm {
namespace {

constexpr const char* kFormat = "zbccl-moe-lm";
constexpr const char* kVersion = "1";

using Metadata = std::map<std::string, std::string>;

const std::string& text(const Metadata& metadata, const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) fail("weights: the metadata has no '{}'", key);
  return found->second;
}

template <typename T>
T number(const Metadata& metadata, const char* key, T least, T most) {
  const std::string& value = text(metadata, key);
  T result{};
  const char* end = value.data() + value.size();
  const auto [stopped, error] = std::from_chars(value.data(), end, result);
  // Written so that a NaN is refused.
  if (error != std::errc() || stopped != end || !(result >= least && result <= most)) {
    fail("weights: metadata '{}' is '{}', expected a number from {} to {}", key, value, least,
         most);
  }
  return result;
}

}  // namespace

Config parse_config(const Metadata& metadata) {
  if (text(metadata, "format") != kFormat) {
    fail("weights: metadata 'format' is '{}', expected '{}'", text(metadata, "format"), kFormat);
  }
  if (text(metadata, "version") != kVersion) {
    fail("weights: metadata 'version' is '{}'; this program reads version {}",
         text(metadata, "version"), kVersion);
  }
  Config config;
  config.dim = number(metadata, "dim", 1, 1 << 16);
  config.layers = number(metadata, "layers", 1, 1 << 10);
  config.heads = number(metadata, "heads", 1, 1 << 10);
  config.kv_heads = number(metadata, "kv_heads", 1, 1 << 10);
  config.head_dim = number(metadata, "head_dim", 2, 1 << 10);
  config.experts = number(metadata, "experts", 1, 1 << 12);
  config.experts_per_token = number(metadata, "experts_per_token", 1, 1 << 12);
  config.expert_hidden = number(metadata, "expert_hidden", 1, 1 << 16);
  config.vocab = number(metadata, "vocab", 256, 256);  // bytes
  config.context = number(metadata, "context", 2, 1 << 16);
  config.rope_base = number(metadata, "rope_base", 1.0, 1e9);
  config.norm_eps = number(metadata, "norm_eps", 1e-12, 1.0);
  if (config.heads % config.kv_heads != 0) {
    fail("weights: {} query heads cannot share {} key/value heads evenly", config.heads,
         config.kv_heads);
  }
  if (config.head_dim % 2 != 0) {
    fail("weights: head_dim is {}; rotary positions need an even one", config.head_dim);
  }
  if (config.experts_per_token > config.experts) {
    fail("weights: {} experts per token, but only {} exist", config.experts_per_token,
         config.experts);
  }
  return config;
}

}  // namespace llm
