// Where rows go: prefix sums over the counts of all ranks. Pure functions; every rank computes the
// same for every rank.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "moe/experts.h"

namespace zbccl::moe {

enum class Layout : int32_t { kRankMajor = 0, kExpertMajor = 1, kExpertMasked = 2 };

// What all ranks showed each other. Counts between ranks of which one masks the other are 0.
struct Table {
  std::vector<int32_t> counts;       // [ranks, experts] slots
  std::vector<int32_t> rank_counts;  // [from, to] tokens, once for each rank
  std::vector<int64_t> capacities;   // of each rank; 0: none
};

// The rows of one rank's output.
struct Places {
  // Expert layouts: [L + 1] where the experts begin, and [L, R] the first row from each source.
  // RankMajor: offsets [R + 1] by source.
  std::vector<int64_t> offsets;
  std::vector<int64_t> begins;
  std::vector<int64_t> limits;  // [L] rows of the expert from there on are left out; or one
  int64_t num_rows = 0;         // written, an ExpertMajor's padding included
  int64_t allocated_rows = 0;   // that the outputs hold
  int64_t needed_capacity = 0;
  bool overflow = false;
};

// kInvalidUsage where a rank would get more rows than an index of 32 bits counts.
Result<Places> places_of(const Table& table, const ExpertMap& map, int rank, Layout layout,
                         int32_t alignment);

// Of `count` rows from `begin` on, those before `limit`.
inline int64_t rows_kept(int64_t begin, int64_t count, int64_t limit) {
  return std::clamp<int64_t>(limit - begin, 0, count);
}

}  // namespace zbccl::moe
