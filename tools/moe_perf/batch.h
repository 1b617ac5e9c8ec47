// The tokens of all ranks in one batch of `zbccl moe`: where they go, what they hold, and what the
// experts give for them. All of it follows from a seed, so every rank knows every other's without
// being sent it. Const use: any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe_perf/shape.h"

namespace zbccl::tools {

struct Routing {
  bool skewed = false;  // expert 0 is the first choice of every token
  // Some slots are empty or name an expert twice, and some tokens go nowhere.
  bool irregular = false;
};

class Batch {
 public:
  Batch(const MoeShape& shape, Routing routing, uint64_t seed);

  const MoeShape& shape() const { return shape_; }
  // [tokens, topk] of one rank.
  std::span<const int64_t> topk(int rank) const { return slots(topk_, rank); }
  std::span<const float> weights(int rank) const { return slots(weights_, rank); }

  // A token's row of that rank, and a row of what that rank's experts give; finite values of many
  // magnitudes, and a few groups of zeros. Writes plain_row_bytes().
  void token(int rank, int64_t row, void* out) const { values(2 * rank, row, out); }
  void result(int rank, int64_t row, void* out) const { values(2 * rank + 1, row, out); }

 private:
  template <typename T>
  std::span<const T> slots(const std::vector<T>& all, int rank) const {
    const auto count = static_cast<size_t>(shape_.tokens * shape_.topk);
    return std::span(all).subspan(static_cast<size_t>(rank) * count, count);
  }
  void values(int stream, int64_t row, void* out) const;

  MoeShape shape_;
  uint64_t seed_;
  std::vector<int64_t> topk_;  // [ranks, tokens, topk]
  std::vector<float> weights_;
};

}  // namespace zbccl::tools
