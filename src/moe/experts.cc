#include "moe/experts.h"

namespace zbccl::moe {

Result<ExpertMap> ExpertMap::make(int32_t num_experts, const int32_t* ranks, int num_ranks) {
  constexpr int32_t kMost = 1 << 20;
  if (num_experts < 1 || num_experts > kMost) {
    return error(Code::kInvalidArgument, "num_experts is {}, expected 1 to {}", num_experts, kMost);
  }
  const auto count = static_cast<size_t>(num_experts);
  ExpertMap map;
  map.rank_.resize(count);
  map.begin_.assign(static_cast<size_t>(num_ranks) + 1, 0);
  const int32_t share = num_experts / num_ranks;
  const int32_t more = num_experts % num_ranks;
  for (int32_t e = 0; e < num_experts; ++e) {
    const int32_t in_larger = more * (share + 1);
    int32_t rank =
        e < in_larger ? e / (share + 1) : more + (e - in_larger) / (share > 0 ? share : 1);
    if (ranks != nullptr) rank = ranks[e];
    if (rank < 0 || rank >= num_ranks) {
      return error(Code::kInvalidArgument, "expert_ranks[{}] is {}, which is no rank; there are {}",
                   e, rank, num_ranks);
    }
    map.rank_[static_cast<size_t>(e)] = rank;
    ++map.begin_[static_cast<size_t>(rank) + 1];
  }
  for (size_t r = 0; r < static_cast<size_t>(num_ranks); ++r) map.begin_[r + 1] += map.begin_[r];
  map.place_.resize(count);
  map.order_.resize(count);
  std::vector<int32_t> next(map.begin_.begin(), map.begin_.end() - 1);
  for (int32_t e = 0; e < num_experts; ++e) {
    const int32_t place = next[static_cast<size_t>(map.rank_of(e))]++;
    map.place_[static_cast<size_t>(e)] = place;
    map.order_[static_cast<size_t>(place)] = e;
  }
  return map;
}

}  // namespace zbccl::moe
