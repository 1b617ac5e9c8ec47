// What a dispatch and a combine of a batch must give, compared with what they gave: the number of
// elements that differ in any bit. Plain and slow, apart from the library's own way. Any thread.
#pragma once

#include <cstdint>

#include "moe_perf/batch.h"
#include "moe_perf/placement.h"

namespace zbccl::tools {

// The outputs of a dispatch on one rank; those that are null were not asked for.
struct Dispatched {
  const void* rows = nullptr;  // [rows, row_bytes()]
  const uint32_t* scales = nullptr;
  const int64_t* topk_idx = nullptr;  // [rows, topk]
  const float* topk_weights = nullptr;
  const float* row_weights = nullptr;  // [rows]
  const int32_t* src_idx = nullptr;
};

// `rank` is the one that holds the outputs. What padding holds is not looked at, but for its
// weights and sources.
uint64_t wrong_dispatched(const Batch& batch, const Placement& placement, int rank,
                          const Dispatched& outputs);

// `out` [tokens, hidden] on `rank`, where the experts of rank r gave Batch::result(r, row).
// `pre_reduced`: as zbcclMoeCombine_t's pre_reduce has it.
uint64_t wrong_combined(const Batch& batch, int rank, bool pre_reduced, const void* out);

}  // namespace zbccl::tools
