// What dispatch and combine give, computed in plain loops from what every rank was given: the rows
// of each output, codes and scales, and sums. Shares nothing with the library.
#pragma once

#include <zbccl/moe.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace zbccl::test {

// The routing of all ranks.
struct MoeWorld {
  int ranks = 0;
  int experts = 0;
  int topk = 0;
  int layout = zbcclMoeRankMajor;
  int64_t alignment = 1;
  std::vector<int32_t> rank_of;                // by expert
  std::vector<std::vector<int64_t>> topk_idx;  // by rank: [tokens, topk]
  std::vector<int64_t> capacity;               // by rank; 0: none
  std::vector<std::vector<bool>> masked;       // by rank: of each other; empty: nobody

  int64_t tokens(int rank) const {
    return static_cast<int64_t>(topk_idx[static_cast<size_t>(rank)].size()) / topk;
  }
  int64_t expert_of(int rank, int64_t token, int slot) const {
    return topk_idx[static_cast<size_t>(rank)][static_cast<size_t>(token * topk + slot)];
  }
  bool blocked(int a, int b) const;
  std::vector<int32_t> experts_of(int rank) const;
  // -1 where it is not `rank`'s.
  int local_of(int rank, int64_t expert) const;
};

struct MoeRow {
  int source = -1;  // -1: nothing
  int64_t token = -1;
  int slot = -1;    // expert layouts
  int expert = -1;  // local
};

struct MoeRows {
  std::vector<MoeRow> rows;  // of the whole output, allocated_rows of it
  int64_t num_rows = 0;      // as zbcclMoeInfo_t
  int64_t needed_capacity = 0;
  bool overflow = false;
  std::vector<int32_t> expert_counts;
};
MoeRows reference_rows(const MoeWorld& world, int rank);

// The value of element i of an f32, f16 or bf16 array.
float element_value(const void* data, size_t i, int type);
// Rounded once, a NaN to the canonical one.
void store_element(void* data, size_t i, int type, float value);

struct MoeCodes {
  std::vector<uint8_t> codes;
  std::vector<uint32_t> scales;  // as recv_scales has them
};
MoeCodes reference_codes(const void* row, int64_t hidden, int type, int quant);

// A row of a token's sum, in the order in which it is added.
struct MoeTerm {
  int rank = 0;
  const void* row = nullptr;
  float weight = 1.0F;
};
void reference_sum(const std::vector<MoeTerm>& terms, bool weighted, bool by_rank,
                   const void* bias0, const void* bias1, int64_t hidden, int type, void* out);

}  // namespace zbccl::test
