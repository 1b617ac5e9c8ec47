#include "moe/places.h"

#include <limits>

namespace zbccl::moe {
namespace {

constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

Places rank_major(const Table& table, int rank, size_t ranks) {
  Places places;
  places.offsets.assign(ranks + 1, 0);
  for (size_t s = 0; s < ranks; ++s) {
    places.offsets[s + 1] =
        places.offsets[s] + table.rank_counts[s * ranks + static_cast<size_t>(rank)];
  }
  places.needed_capacity = places.offsets[ranks];
  return places;
}

// `capacity`: ExpertMasked, of each expert; else 0.
Places by_expert(const Table& table, const ExpertMap& map, int rank, int64_t alignment,
                 int64_t capacity) {
  const auto ranks = static_cast<size_t>(map.num_ranks());
  const auto all = static_cast<size_t>(map.num_experts());
  const std::span<const int32_t> experts = map.experts_of(rank);
  Places places;
  places.offsets.reserve(experts.size() + 1);
  places.begins.reserve(experts.size() * ranks);
  int64_t at = 0;
  int64_t most = 0;
  for (size_t e = 0; e < experts.size(); ++e) {
    const int64_t start = capacity > 0 ? static_cast<int64_t>(e) * capacity
                                       : (at + alignment - 1) / alignment * alignment;
    places.offsets.push_back(start);
    at = start;
    for (size_t s = 0; s < ranks; ++s) {
      places.begins.push_back(at);
      at += table.counts[s * all + static_cast<size_t>(experts[e])];
    }
    most = std::max(most, at - start);
  }
  places.offsets.push_back(capacity > 0 ? static_cast<int64_t>(experts.size()) * capacity
                                        : (at + alignment - 1) / alignment * alignment);
  places.needed_capacity = capacity > 0 ? most : places.offsets.back();
  return places;
}

}  // namespace

Result<Places> places_of(const Table& table, const ExpertMap& map, int rank, Layout layout,
                         int32_t alignment) {
  const auto ranks = static_cast<size_t>(map.num_ranks());
  const int64_t capacity = table.capacities[static_cast<size_t>(rank)];
  const bool masked = layout == Layout::kExpertMasked;
  const size_t experts = map.experts_of(rank).size();
  Places places = layout == Layout::kRankMajor
                      ? rank_major(table, rank, ranks)
                      : by_expert(table, map, rank, alignment, masked ? capacity : 0);
  if (places.offsets.back() > kMostRows || places.needed_capacity > kMostRows ||
      capacity > kMostRows) {
    return error(Code::kInvalidUsage, "rank {} would get {} rows, more than {}", rank,
                 std::max({places.offsets.back(), places.needed_capacity, capacity}), kMostRows);
  }
  places.overflow = capacity > 0 && places.needed_capacity > capacity;
  const int64_t total = places.offsets.back();
  if (masked) {
    for (size_t e = 0; e < experts; ++e) places.limits.push_back(places.offsets[e] + capacity);
    places.num_rows = total;
    places.allocated_rows = total;
    return places;
  }
  places.limits.assign(layout == Layout::kRankMajor ? 1 : experts,
                       capacity > 0 ? capacity : kNoLimit);
  places.num_rows = capacity > 0 ? std::min(total, capacity) : total;
  places.allocated_rows = capacity > 0 ? capacity : total;
  return places;
}

}  // namespace zbccl::moe
