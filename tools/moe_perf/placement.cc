#include "moe_perf/placement.h"

#include <algorithm>
#include <cstddef>

namespace zbccl::tools {

Placement::Placement(const Batch& batch, int rank) {
  const MoeShape& shape = batch.shape();
  const int first = first_expert(shape, rank);
  expert_counts.resize(static_cast<size_t>(first_expert(shape, rank + 1) - first));
  for (int source = 0; source < shape.ranks; ++source) {
    for (const int64_t expert : batch.topk(source)) {
      if (expert >= 0 && owner_of(shape, static_cast<int>(expert)) == rank) {
        ++expert_counts[static_cast<size_t>(expert - first)];
      }
    }
  }
  shape.layout == zbcclMoeRankMajor ? by_rank(batch, rank) : by_expert(batch, rank);
  filled = std::count_if(rows.begin(), rows.end(), [](const RowSource& r) { return r.rank >= 0; });
}

void Placement::by_rank(const Batch& batch, int rank) {
  const MoeShape& shape = batch.shape();
  const auto is_here = [&](int64_t expert) {
    return expert >= 0 && owner_of(shape, static_cast<int>(expert)) == rank;
  };
  for (int source = 0; source < shape.ranks; ++source) {
    const auto topk = batch.topk(source);
    for (int64_t token = 0; token < shape.tokens; ++token) {
      const auto slots =
          topk.subspan(static_cast<size_t>(token * shape.topk), static_cast<size_t>(shape.topk));
      if (std::any_of(slots.begin(), slots.end(), is_here)) rows.push_back({source, token, 0});
    }
  }
}

void Placement::by_expert(const Batch& batch, int rank) {
  const MoeShape& shape = batch.shape();
  const int first = first_expert(shape, rank);
  std::vector<std::vector<RowSource>> of_expert(expert_counts.size());
  for (int source = 0; source < shape.ranks; ++source) {
    const auto topk = batch.topk(source);
    for (size_t i = 0; i < topk.size(); ++i) {
      const int64_t local = topk[i] - first;
      if (topk[i] < 0 || local < 0 || local >= static_cast<int64_t>(of_expert.size())) continue;
      of_expert[static_cast<size_t>(local)].push_back(
          {source, static_cast<int64_t>(i) / shape.topk, static_cast<int>(i) % shape.topk});
    }
  }
  const auto capacity = static_cast<size_t>(capacity_of(shape));
  const auto alignment = static_cast<size_t>(shape.alignment);
  const bool masked = shape.layout == zbcclMoeExpertMasked;
  for (size_t e = 0; e < of_expert.size(); ++e) {
    std::vector<RowSource>& part = of_expert[e];
    if (masked && part.size() > capacity) {
      part.resize(capacity);
      expert_counts[e] = static_cast<int32_t>(capacity);
      overflow = true;
    }
    rows.insert(rows.end(), part.begin(), part.end());
    const size_t padded = masked ? capacity : (part.size() + alignment - 1) / alignment * alignment;
    rows.resize(rows.size() - part.size() + padded);
  }
}

std::vector<int64_t> places_of_tokens(const Batch& batch, int rank) {
  const MoeShape& shape = batch.shape();
  const bool by_rank = shape.layout == zbcclMoeRankMajor;
  const int columns = by_rank ? shape.ranks : shape.topk;
  std::vector<int64_t> places(static_cast<size_t>(shape.tokens * columns), -1);
  for (int peer = 0; peer < shape.ranks; ++peer) {
    const Placement placement(batch, peer);
    for (size_t row = 0; row < placement.rows.size(); ++row) {
      const RowSource& source = placement.rows[row];
      if (source.rank != rank) continue;
      const int column = by_rank ? peer : source.slot;
      places[static_cast<size_t>(source.token * columns + column)] = static_cast<int64_t>(row);
    }
  }
  return places;
}

}  // namespace zbccl::tools
