#include "moe/handle.h"

namespace zbccl::moe {

Handle::Handle(std::shared_ptr<Moe> owner) : moe(std::move(owner)) { moe->count_handle(1, 0); }

Handle::~Handle() {
  moe->count_handle(-1, -counted_bytes);
  if (block.data != nullptr) moe->give_block(block);
}

Status Handle::check_ready() const {
  const int now = state.load(std::memory_order_acquire);
  if (now == 1) return {};
  return error(
      Code::kInvalidUsage, "{}",
      now == 0
          ? "the handle's Route has not completed; wait for its work first, or make the Dispatch "
            "that it goes with"
          : "the handle's Route failed; make a new handle");
}

void Handle::count_rows() {
  const ExpertMap& map = moe->map();
  const auto ranks = static_cast<size_t>(map.num_ranks());
  const auto all = static_cast<size_t>(map.num_experts());
  const std::span<const int32_t> mine = map.experts_of(moe->rank());
  expert_counts.assign(mine.size(), 0);
  if (by_expert()) source_counts.assign(mine.size() * ranks, 0);
  written_rows = places.num_rows;
  int64_t kept_rows = 0;
  for (size_t e = 0; e < mine.size(); ++e) {
    for (size_t s = 0; s < ranks; ++s) {
      int64_t count = table.counts[s * all + static_cast<size_t>(mine[e])];
      if (by_expert()) {
        count = rows_kept(places.begins[e * ranks + s], count, places.limits[e]);
        source_counts[e * ranks + s] = static_cast<int32_t>(count);
      }
      expert_counts[e] += static_cast<int32_t>(count);
      kept_rows += count;
    }
  }
  if (layout() == Layout::kExpertMasked) written_rows = kept_rows;
}

void Handle::fill(zbcclMoeInfo_t* info) const {
  const ExpertMap& map = moe->map();
  const std::span<const int32_t> mine = map.experts_of(moe->rank());
  const bool expert = by_expert();
  info->rank = moe->rank();
  info->num_ranks = map.num_ranks();
  info->num_experts = map.num_experts();
  info->num_local_experts = static_cast<int32_t>(mine.size());
  info->num_topk = routing.num_topk;
  info->layout = routing.layout;
  info->alignment = routing.alignment;
  info->idx_type = routing.idx_type;
  info->num_tokens = routing.num_tokens;
  info->capacity = routing.capacity;
  info->num_rows = written_rows;
  info->allocated_rows = places.allocated_rows;
  info->needed_capacity = places.needed_capacity;
  info->overflow = places.overflow ? 1 : 0;
  info->send_overflow = send_overflow ? 1 : 0;
  info->local_experts = mine.data();
  info->expert_counts = expert_counts.data();
  info->expert_offsets = expert ? places.offsets.data() : nullptr;
  info->source_offsets = expert ? nullptr : places.offsets.data();
  info->source_counts = expert ? source_counts.data() : nullptr;
  info->source_begins = expert ? places.begins.data() : nullptr;
  info->counts = table.counts.data();
  info->rank_counts = table.rank_counts.data();
}

}  // namespace zbccl::moe
