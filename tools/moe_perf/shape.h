// What one row of `zbccl moe` exchanges, the same on every rank.
#pragma once

#include <zbccl/moe.h>

#include <cstdint>

namespace zbccl::tools {

struct MoeShape {
  int ranks = 1;
  int64_t tokens = 0;  // of each rank
  int64_t hidden = 0;
  int experts = 1;  // over all ranks, in contiguous blocks
  int topk = 1;
  zbcclDataType_t type = zbcclBfloat16;
  zbcclMoeQuant_t quant = zbcclMoeQuantNone;
  bool given = false;  // quantized before the call: x is codes, with scales
  zbcclMoeLayout_t layout = zbcclMoeRankMajor;
  int alignment = 1;        // of zbcclMoeExpertMajor
  bool pre_reduce = false;  // of the expert layouts
};

// Rows that zbcclMoeExpertMasked holds for each expert: all tokens may come. 0 for other layouts.
int64_t capacity_of(const MoeShape& shape);

// The first E % R ranks have one expert more.
int first_expert(const MoeShape& shape, int rank);
int owner_of(const MoeShape& shape, int expert);

// Of a row as it arrives.
size_t row_bytes(const MoeShape& shape);
int64_t scales_of(const MoeShape& shape);  // 4 bytes each
// Of a row as it leaves, and as it comes back.
size_t plain_row_bytes(const MoeShape& shape);

}  // namespace zbccl::tools
