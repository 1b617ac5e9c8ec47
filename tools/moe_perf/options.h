// What the user of `zbccl moe` asked for, checked before any rank starts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe_perf/shape.h"

namespace zbccl::tools {

struct MoeOptions {
  bool cuda = false;
  int max_blocks = 0;  // of a call on a GPU; 0: the library decides
  bool low_latency = false;
  std::vector<int64_t> tokens;  // of each rank: a row of the table for each number
  MoeShape shape;               // with the first number of tokens
  bool skewed = false;
  bool cached = false;
  bool graph = false;  // calls of a stated capacity, in CUDA graphs
  bool two_phases = false;
  int iterations = 0;  // 0: as many as fit in `seconds`
  double seconds = 0.3;
  int warmup = 3;
  bool check = false;
  bool unregistered = false;
  bool bind = true;
  std::string compare;    // "" or "gloo"
  std::string json_path;  // "" for none
};

// As CLI11 hands them over.
struct MoeArguments {
  int ranks = 0;  // 0: as many as cores, at least 2
  std::string device = "host";
  int max_blocks = 0;
  std::string mode = "normal";
  std::vector<int64_t> tokens;  // empty: 1024, low latency 128
  int64_t hidden = 7168;
  int experts = 0;  // 0: 256, low latency 288
  int topk = 8;
  std::string layout;  // empty: rank_major, low latency expert_masked
  int alignment = 1;
  std::string type = "bf16";
  std::string quant = "none";
  std::string routing = "uniform";
  bool cached = false;
  bool graph = false;
  bool two_phases = false;
  bool pre_reduce = false;
  int iterations = 0;
  double seconds = 0.3;
  int warmup = 3;
  bool check = false;
  bool unregistered = false;
  bool no_bind = false;
  std::string compare = "none";
  std::string json_path;
};

inline constexpr int kMaxMoeRanks = 256;
inline constexpr int kMaxMoeIterations = 10'000'000;

const char* layout_name(zbcclMoeLayout_t layout);
const char* quant_name(const MoeShape& shape);

// Throws UsageError for what cannot be done with `ranks` ranks on this machine.
MoeOptions check_arguments(const MoeArguments& arguments, int ranks);

}  // namespace zbccl::tools
