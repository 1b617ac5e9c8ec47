// Per-rank sizes: their check, and what ranks show of them.
#include <algorithm>
#include <numeric>

#include "collectives/collective.h"

namespace zbccl::collectives {
namespace {

constexpr size_t kMostElements = size_t{1} << 47;

Status check_overlap(const Blocks& blocks) {
  std::vector<size_t> order(blocks.counts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::erase_if(order, [&](size_t r) { return blocks.counts[r] == 0; });
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return blocks.offsets[a] < blocks.offsets[b]; });
  for (size_t i = 1; i < order.size(); ++i) {
    const size_t before = order[i - 1];
    if (blocks.offsets[before] + blocks.counts[before] <= blocks.offsets[order[i]]) continue;
    return error(
        Code::kInvalidArgument,
        "the blocks of ranks {} and {} overlap in the output: {} elements at offset {}, the "
        "next block at {}",
        before, order[i], blocks.counts[before], blocks.offsets[before], blocks.offsets[order[i]]);
  }
  return {};
}

}  // namespace

Result<std::shared_ptr<const Blocks>> Blocks::make(const size_t* counts, const size_t* offsets,
                                                   int nranks, bool may_overlap) {
  if (counts == nullptr) return error(Code::kInvalidArgument, "the counts are a null pointer");
  const auto n = static_cast<size_t>(nranks);
  auto blocks = std::make_shared<Blocks>();
  blocks->counts.assign(counts, counts + n);
  blocks->offsets.resize(n);
  size_t next = 0;
  for (size_t r = 0; r < n; ++r) {
    const size_t offset = offsets != nullptr ? offsets[r] : next;
    if (counts[r] > kMostElements || offset > kMostElements) {
      return error(Code::kInvalidArgument,
                   "the block of rank {}, {} elements at offset {}, is more than memory", r,
                   counts[r], offset);
    }
    blocks->offsets[r] = counts[r] > 0 ? offset : 0;  // an empty block lies nowhere
    next = offset + counts[r];
    if (counts[r] > 0) blocks->extent = std::max(blocks->extent, next);
  }
  if (offsets != nullptr && !may_overlap) ZBCCL_RETURN_IF_ERROR(check_overlap(*blocks));
  return std::shared_ptr<const Blocks>(std::move(blocks));
}

}  // namespace zbccl::collectives
