// The model's dimensions, as a weights file's metadata states them.
#pragma once

#include <map>
#include <string>

namespace llm {

struct Config {
  int dim = 0;  // width of the residual stream
  int layers = 0;
  int heads = 0;     // query heads
  int kv_heads = 0;  // key/value heads; each serves heads / kv_heads query heads
  int head_dim = 0;
  int experts = 0;
  int experts_per_token = 0;
  int expert_hidden = 0;
  int vocab = 0;
  int context = 0;  // tokens, the prompt included
  double rope_base = 0;
  double norm_eps = 0;

  int queries_per_kv_head() const { return heads / kv_heads; }
};

// Throws Error where a value is missing, not a number, out of range or does not fit the others.
Config parse_config(const std::map<std::string, std::string>& metadata);

}  // namespace llm
