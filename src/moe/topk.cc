#include "moe/topk.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace zbccl::moe {
namespace {

template <typename Index>
Status narrow_all(const void* topk_idx, size_t count, int topk, int32_t num_experts,
                  int32_t* experts) {
  // At any alignment.
  const auto at = [topk_idx](size_t i) {
    Index value;
    std::memcpy(&value, static_cast<const std::byte*>(topk_idx) + i * sizeof value, sizeof value);
    return value;
  };
  bool good = true;
  for (size_t i = 0; i < count; ++i) {
    const Index value = at(i);
    good = good && value >= -1 && value < num_experts;
    experts[i] = static_cast<int32_t>(value);
  }
  if (good) return {};
  size_t bad = 0;
  while (at(bad) >= -1 && at(bad) < num_experts) ++bad;
  return error(
      Code::kInvalidArgument, "topk_idx[{}, {}] is {}, expected -1 or an expert; there are {}",
      bad / static_cast<size_t>(topk), bad % static_cast<size_t>(topk), at(bad), num_experts);
}

// Calls seen(token, rank) once for each token and rank that holds one of its experts, by token.
template <typename Seen>
void for_each_rank(std::span<const int32_t> experts, int topk, const ExpertMap& map, Seen&& seen) {
  const auto k = static_cast<size_t>(topk);
  std::vector<uint32_t> last(static_cast<size_t>(map.num_ranks()), UINT32_MAX);
  for (size_t at = 0; at < experts.size(); at += k) {
    const auto token = static_cast<uint32_t>(at / k);
    for (size_t slot = 0; slot < k; ++slot) {
      const int32_t expert = experts[at + slot];
      if (expert < 0) continue;
      const auto rank = static_cast<size_t>(map.rank_of(expert));
      if (last[rank] == token) continue;
      last[rank] = token;
      seen(token, rank);
    }
  }
}

}  // namespace

Status read_topk(const void* topk_idx, DataType type, int64_t tokens, int topk,
                 const ExpertMap& map, int32_t* experts, std::span<int32_t> counts,
                 std::span<int32_t> rank_counts) {
  std::fill(counts.begin(), counts.end(), 0);
  std::fill(rank_counts.begin(), rank_counts.end(), 0);
  const size_t slots = static_cast<size_t>(tokens) * static_cast<size_t>(topk);
  const int32_t num_experts = map.num_experts();
  ZBCCL_RETURN_IF_ERROR(type == DataType::kI32
                            ? narrow_all<int32_t>(topk_idx, slots, topk, num_experts, experts)
                            : narrow_all<int64_t>(topk_idx, slots, topk, num_experts, experts));
  for (size_t i = 0; i < slots; ++i) {
    if (experts[i] >= 0) ++counts[static_cast<size_t>(experts[i])];
  }
  for_each_rank({experts, slots}, topk, map,
                [&](uint32_t /*token*/, size_t rank) { ++rank_counts[rank]; });
  return {};
}

void list_slots(std::span<const int32_t> experts, const ExpertMap& map,
                std::span<const int32_t> counts, uint32_t* slots) {
  std::vector<uint32_t> next(counts.size());
  uint32_t at = 0;
  for (const int32_t expert : map.by_place()) {
    next[static_cast<size_t>(expert)] = at;
    at += static_cast<uint32_t>(counts[static_cast<size_t>(expert)]);
  }
  for (size_t i = 0; i < experts.size(); ++i) {
    if (experts[i] >= 0) slots[next[static_cast<size_t>(experts[i])]++] = static_cast<uint32_t>(i);
  }
}

void list_tokens(std::span<const int32_t> experts, int topk, const ExpertMap& map,
                 std::span<const int32_t> rank_counts, uint32_t* tokens) {
  std::vector<uint32_t> next(rank_counts.size());
  uint32_t at = 0;
  for (size_t r = 0; r < rank_counts.size(); ++r) {
    next[r] = at;
    at += static_cast<uint32_t>(rank_counts[r]);
  }
  for_each_rank(experts, topk, map,
                [&](uint32_t token, size_t rank) { tokens[next[rank]++] = token; });
}

}  // namespace zbccl::moe
