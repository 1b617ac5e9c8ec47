// Where the rows of a batch belong, told as plainly as the layouts are described in zbccl/moe.h.
// Const use: any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "moe_perf/batch.h"

namespace zbccl::tools {

// What stands in one row of an output.
struct RowSource {
  int rank = -1;  // -1: padding
  int64_t token = 0;
  int slot = 0;  // 0 in zbcclMoeRankMajor, where a row stands for all slots
};

struct Placement {
  Placement(const Batch& batch, int rank);

  std::vector<RowSource> rows;         // that a dispatch gives that rank
  std::vector<int32_t> expert_counts;  // [local experts], as in zbcclMoeInfo_t
  int64_t filled = 0;                  // rows without the padding
  bool overflow = false;               // an expert named twice may have more rows than its capacity

 private:
  void by_rank(const Batch& batch, int rank);
  void by_expert(const Batch& batch, int rank);
};

// Where the rows of one rank's tokens stand on the others: at [token, slot] in the expert layouts,
// at [token, rank] in zbcclMoeRankMajor; -1 for none.
std::vector<int64_t> places_of_tokens(const Batch& batch, int rank);

}  // namespace zbccl::tools
