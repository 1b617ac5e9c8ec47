// Which rank holds which expert. Immutable; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace zbccl::moe {

class ExpertMap {
 public:
  // `ranks`: the rank of each expert, or null: contiguous blocks, of which the first
  // num_experts % num_ranks ranks have one more.
  static Result<ExpertMap> make(int32_t num_experts, const int32_t* ranks, int num_ranks);
  ExpertMap() = default;

  int num_ranks() const { return static_cast<int>(begin_.size()) - 1; }
  int32_t num_experts() const { return static_cast<int32_t>(rank_.size()); }
  int32_t rank_of(int32_t expert) const { return rank_[static_cast<size_t>(expert)]; }
  // Its number among its rank's experts.
  int32_t local_of(int32_t expert) const {
    return place_[static_cast<size_t>(expert)] - begin_[static_cast<size_t>(rank_of(expert))];
  }
  // Its place when all experts stand in the order of their ranks, then of their numbers.
  int32_t place_of(int32_t expert) const { return place_[static_cast<size_t>(expert)]; }
  std::span<const int32_t> by_place() const { return order_; }
  int32_t first_place(int rank) const { return begin_[static_cast<size_t>(rank)]; }
  // The experts of `rank`, ascending.
  std::span<const int32_t> experts_of(int rank) const {
    const auto r = static_cast<size_t>(rank);
    return std::span(order_).subspan(static_cast<size_t>(begin_[r]),
                                     static_cast<size_t>(begin_[r + 1] - begin_[r]));
  }
  std::span<const int32_t> ranks() const { return rank_; }

 private:
  std::vector<int32_t> rank_;
  std::vector<int32_t> place_;
  std::vector<int32_t> order_;
  std::vector<int32_t> begin_;  // by rank, and the end
};

}  // namespace zbccl::moe
