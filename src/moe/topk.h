// What one rank's own tokens ask for: how often each expert and each rank, and in which order.
// Pure functions; any thread.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"
#include "base/types.h"
#include "moe/experts.h"

namespace zbccl::moe {

// Reads topk_idx [tokens, topk] of kI32 or kI64 into `experts`, with -1 for none, and counts:
// slots for each expert, and tokens for each rank, a token once for each rank. kInvalidArgument
// for a number that is no expert.
Status read_topk(const void* topk_idx, DataType type, int64_t tokens, int topk,
                 const ExpertMap& map, int32_t* experts, std::span<int32_t> counts,
                 std::span<int32_t> rank_counts);

// The slots (token * topk + slot) that name an expert, by the expert's place and then ascending.
void list_slots(std::span<const int32_t> experts, const ExpertMap& map,
                std::span<const int32_t> counts, uint32_t* slots);
// The tokens that go to each rank, by rank and then ascending.
void list_tokens(std::span<const int32_t> experts, int topk, const ExpertMap& map,
                 std::span<const int32_t> rank_counts, uint32_t* tokens);

}  // namespace zbccl::moe
