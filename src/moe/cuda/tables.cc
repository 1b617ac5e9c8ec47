#include "moe/cuda/tables.h"

#include <atomic>
#include <thread>

namespace zbccl::moe {
namespace {

constexpr size_t kUnit = 256;

// Hands out parts of a block, or adds up what is needed.
struct Carver {
  char* base = nullptr;
  size_t used = 0;

  template <typename T>
  T* take(size_t count) {
    T* const at = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (count * sizeof(T) + kUnit - 1) / kUnit * kUnit;
    return at;
  }
};

void lay_out(Carver& carver, const Handle& handle, size_t all_words, cuda::MoeTables* tables) {
  const auto tokens = static_cast<size_t>(handle.routing.num_tokens);
  const auto topk = static_cast<size_t>(handle.routing.num_topk);
  const auto width = static_cast<size_t>(tables->width);
  const size_t locals = handle.moe->map().experts_of(handle.moe->rank()).size();
  tables->totals = carver.take<cuda::MoeTotals>(1);
  tables->sent_epoch = carver.take<uint32_t>(1);
  tables->expert_counts = carver.take<int32_t>(locals + 1);
  tables->expert_offsets = carver.take<int32_t>(locals + 1);
  tables->words = carver.take<int32_t>(all_words);
  tables->targets = carver.take<uint32_t>(tokens * width);
  if (!handle.by_expert()) tables->experts = carver.take<int16_t>(tokens * topk);
}

// Whether a row of this rank's tokens was left out somewhere.
Result<bool> leaves_out(const Handle& handle) {
  const ExpertMap& map = handle.moe->map();
  const auto me = static_cast<size_t>(handle.moe->rank());
  const auto ranks = static_cast<size_t>(map.num_ranks());
  for (int r = 0; r < map.num_ranks(); ++r) {
    if (handle.table.capacities[static_cast<size_t>(r)] == 0) continue;
    ZBCCL_ASSIGN_OR_RETURN(const Places places, places_of(handle.table, map, r, handle.layout(),
                                                          handle.routing.alignment));
    if (!handle.by_expert()) {
      const int64_t begin = places.offsets[me];
      const int64_t wanted = places.offsets[me + 1] - begin;
      if (rows_kept(begin, wanted, places.limits[0]) < wanted) return true;
      continue;
    }
    const std::span<const int32_t> experts = map.experts_of(r);
    for (size_t e = 0; e < experts.size(); ++e) {
      const int32_t wanted = handle.table.counts[me * static_cast<size_t>(map.num_experts()) +
                                                 static_cast<size_t>(experts[e])];
      if (rows_kept(places.begins[e * ranks + me], wanted, places.limits[e]) < wanted) return true;
    }
  }
  return false;
}

}  // namespace

Result<std::unique_ptr<Tables>> Tables::make(CudaHalf& half, const Handle& handle, bool exact) {
  auto made = std::unique_ptr<Tables>(new Tables(half));
  cuda::MoeTables& tables = made->tables_;
  tables.width = handle.by_expert() ? handle.routing.num_topk : half.engine().team().size();
  const size_t all_words =
      static_cast<size_t>(half.engine().team().size()) * static_cast<size_t>(half.words());
  Carver need;
  lay_out(need, handle, all_words, &tables);
  ZBCCL_ASSIGN_OR_RETURN(made->block_, half.take_block(need.used));
  Carver carver = {made->block_.data, 0};
  lay_out(carver, handle, all_words, &tables);
  if (exact) {
    ZBCCL_ASSIGN_OR_RETURN(made->counts_, half.take_counts());
  }
  return made;
}

Tables::~Tables() {
  if (block_.data != nullptr) half_.give_block(block_);
  // Those that may still be written go with the communicator.
  if (counts_.done == nullptr) return;
  const std::atomic_ref<uint32_t> done(*counts_.done);
  if (done.load(std::memory_order_acquire) != 0) half_.give_counts(counts_);
}

Status Tables::settle(Handle& handle) {
  const std::lock_guard lock(mutex_);
  if (settled_) return outcome_;
  if (handle.routing.capacity > 0) {
    std::vector<int32_t> words;
    cuda::MoeTotals totals;
    ZBCCL_RETURN_IF_ERROR(read_back(&words, &totals));
    return fill(handle, words.data(), totals);
  }
  if (counts_.done == nullptr) return {};  // the route was not enqueued
  ZBCCL_RETURN_IF_ERROR(await_counts());
  outcome_ = fill(handle, counts_.words, *counts_.totals);
  settled_ = true;
  half_.give_counts(counts_);
  counts_ = {};
  handle.state.store(outcome_.ok() ? 1 : 2, std::memory_order_release);
  return outcome_;
}

Status Tables::await_counts() {
  const std::atomic_ref<uint32_t> done(*counts_.done);
  for (uint32_t looks = 1; done.load(std::memory_order_acquire) == 0; ++looks) {
    if (looks % 256 != 0) continue;
    ZBCCL_RETURN_IF_ERROR(half_.engine().check_alive());
    if (deadline_.passed()) {
      return error(Code::kTimeout,
                   "moe_route: the counts have not come until the deadline; what stands before the "
                   "call on its stream has not ended");
    }
    std::this_thread::yield();
  }
  return {};
}

Status Tables::read_back(std::vector<int32_t>* words, cuda::MoeTotals* totals) const {
  cuda::DeviceTeam& team = half_.engine().team();
  words->resize(static_cast<size_t>(team.size()) * static_cast<size_t>(half_.words()));
  const Deadline deadline = Deadline::after(team.host().timeout());
  ZBCCL_RETURN_IF_ERROR(
      team.read(words->data(), tables_.words, words->size() * sizeof(int32_t), deadline));
  ZBCCL_RETURN_IF_ERROR(team.read(totals, tables_.totals, sizeof *totals, deadline));
  return half_.engine().check_alive();
}

Status Tables::fill(Handle& handle, const int32_t* words, const cuda::MoeTotals& totals) const {
  const ExpertMap& map = handle.moe->map();
  const int me = handle.moe->rank();
  const int culprit = totals.failed >> 8;
  if ((totals.failed & 0xff) == cuda::kWrongIndex) {
    return error(culprit == me ? Code::kInvalidArgument : Code::kInvalidUsage,
                 "moe_route: topk_idx of rank {} names an expert below -1, or one that is none; "
                 "there are {}",
                 culprit, map.num_experts());
  }
  if (totals.failed != 0) {
    return error(Code::kInvalidUsage, "moe_route: rank {} would get more than {} rows", culprit,
                 cuda::kMostTargetRows);
  }
  const auto ranks = static_cast<size_t>(map.num_ranks());
  const auto experts = static_cast<size_t>(map.num_experts());
  Table& table = handle.table;
  table.counts.resize(ranks * experts);
  table.rank_counts.resize(ranks * ranks);
  table.capacities.resize(ranks);
  for (size_t s = 0; s < ranks; ++s) {
    const int32_t* const row = words + s * static_cast<size_t>(half_.words());
    std::copy_n(row, experts, table.counts.begin() + static_cast<ptrdiff_t>(s * experts));
    std::copy_n(row + experts, ranks,
                table.rank_counts.begin() + static_cast<ptrdiff_t>(s * ranks));
    table.capacities[s] = row[experts + ranks + cuda::kWordCapacity];
  }
  ZBCCL_ASSIGN_OR_RETURN(handle.places,
                         places_of(table, map, me, handle.layout(), handle.routing.alignment));
  ZBCCL_ASSIGN_OR_RETURN(handle.send_overflow, leaves_out(handle));
  handle.count_rows();
  return {};
}

}  // namespace zbccl::moe
