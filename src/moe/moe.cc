#include "moe/moe.h"

#include <algorithm>

#include "memory/device_memory.h"
#include "memory/pool.h"

namespace zbccl::moe {
namespace {

constexpr size_t kMostSpare = 2;  // blocks kept for the next handles

}  // namespace

Moe::~Moe() {
  for (const Block& block : spare_) (void)memory::Pool::process().free(block.data);
}

Result<std::shared_ptr<Moe>> Moe::create(collectives::Context& context,
                                         const zbcclMoeConfig_t& config, const Status& local,
                                         Milliseconds timeout) {
  transport::Team& team = context.team;
  const std::shared_ptr<Moe> moe(new Moe);
  moe->rank_ = team.rank();
  moe->masked_.assign(static_cast<size_t>(team.size()), 0);
  Status status = local;
  if (status.ok()) {
    auto map = ExpertMap::make(config.num_experts, config.expert_ranks, team.size());
    if (map.ok()) {
      moe->map_ = std::move(*map);
    } else {
      status = map.status();
    }
  }
  const std::span<const int32_t> ranks = moe->map_.ranks();
  ZBCCL_RETURN_IF_ERROR(moe->board_.make(team, ranks.size()));
  if (status.ok() && context.device != nullptr) {
    auto half = make_device_half(context, *moe);
    status = half.status();
    if (status.ok()) moe->device_ = std::move(*half);
  }
  if (moe->device_ != nullptr) {
    moe->board_.next(team).own[0] = moe->device_->board().high;
    moe->board_.next(team).own[1] = moe->device_->board().low;
  }
  moe->board_.next(team).terms[0] = static_cast<int64_t>(ranks.size());
  std::copy(ranks.begin(), ranks.end(), moe->board_.next_counts(team).begin());
  ZBCCL_RETURN_IF_ERROR(
      moe->board_.enter(team, Operation::kMoeCreate, 0, status, {"num_experts"}, timeout));
  for (int r = 0; r < team.size(); ++r) {
    const int32_t* const theirs = moe->board_.shown_counts(team, r);
    const int32_t* const first = moe->board_.shown_counts(team, 0);
    for (size_t e = 0; e < ranks.size(); ++e) {
      if (theirs[e] == first[e]) continue;
      return error(Code::kInvalidUsage,
                   "moe_create: expert {} is on rank {} by rank 0's expert_ranks and on rank {} by "
                   "rank {}'s; give the same on every rank",
                   e, first[e], theirs[e], r);
    }
  }
  moe->number_ = static_cast<int32_t>(team.sequence());
  if (moe->device_ == nullptr) return moe;
  std::vector<DeviceHalf::Board> boards;
  for (int r = 0; r < team.size(); ++r) {
    const Slot& shown = moe->board_.shown(team, r);
    boards.push_back({static_cast<uint32_t>(shown.own[0]), static_cast<uint32_t>(shown.own[1])});
  }
  if (const Status connected = moe->device_->connect(boards); !connected.ok()) {
    return team.give_up(connected);
  }
  return moe;
}

Status Moe::set_mask(int rank, bool masked) {
  if (rank < 0 || rank >= map_.num_ranks()) {
    return error(Code::kInvalidArgument, "{} is no rank; there are {}", rank, map_.num_ranks());
  }
  if (rank == rank_ && masked) {
    return error(Code::kInvalidArgument, "rank {} cannot mask itself", rank);
  }
  masked_[static_cast<size_t>(rank)] = masked ? 1 : 0;
  return {};
}

int Moe::device() const { return device_ != nullptr ? device_->device() : kHostMemory; }

void Moe::fill(zbcclMoeReport_t* report) const {
  const auto get = [](const auto& value) {
    return static_cast<uint64_t>(value.load(std::memory_order_relaxed));
  };
  const std::lock_guard lock(mutex_);
  report->metadata_bytes = board_.bytes() + get(handle_bytes_);
  report->held_bytes = report->metadata_bytes;
  for (const Block& block : spare_) report->held_bytes += block.bytes;
  if (device_ != nullptr) {
    report->metadata_bytes += device_->metadata_bytes();
    report->held_bytes += device_->held_bytes();
  }
  report->staged_bytes = get(staged_);
  report->routes = get(routes_);
  report->dispatches = get(dispatches_);
  report->combines = get(combines_);
  report->handles = get(handles_);
  report->dispatch_blocks = dispatch_blocks_.load(std::memory_order_relaxed);
  report->combine_blocks = combine_blocks_.load(std::memory_order_relaxed);
}

Result<Moe::Block> Moe::take_block(size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < spare_.size(); ++i) {
      if (spare_[i].bytes < bytes) continue;
      const Block block = spare_[i];
      spare_.erase(spare_.begin() + static_cast<ptrdiff_t>(i));
      return block;
    }
  }
  ZBCCL_ASSIGN_OR_RETURN(void* const data,
                         memory::Pool::process().allocate(bytes, memory::Use::kMetadata));
  return Block{static_cast<std::byte*>(data), bytes};
}

void Moe::give_block(Block block) {
  {
    const std::lock_guard lock(mutex_);
    spare_.insert(spare_.begin(), block);
    if (spare_.size() <= kMostSpare) return;
    block = spare_.back();
    spare_.pop_back();
  }
  (void)memory::Pool::process().free(block.data);
}

void Moe::count_handle(int64_t handles, int64_t metadata_bytes) {
  handles_.fetch_add(handles, std::memory_order_relaxed);
  handle_bytes_.fetch_add(metadata_bytes, std::memory_order_relaxed);
}

Status check_array(const void* address, size_t element, const char* name, int device) {
  if (address == nullptr) return {};
  if (reinterpret_cast<uintptr_t>(address) % element != 0) {
    return error(Code::kInvalidArgument, "`{}` at {} is not aligned to its elements of {} bytes",
                 name, address, element);
  }
  const int there = memory::device_of(address);
  if (there == device) return {};
  const auto place = [](int where) {
    return where < 0 ? std::string("host memory") : format("memory of CUDA device {}", where);
  };
  return error(
      Code::kInvalidArgument,
      "`{}` is {}, and the call is on {}: all arrays of a handle lie where the indices lay "
      "that it was routed with",
      name, place(there), place(device));
}

Status Ranges::check(int device) const {
  for (const Range& range : ranges_) {
    ZBCCL_RETURN_IF_ERROR(
        check_array(reinterpret_cast<const void*>(range.begin), range.element, range.name, device));
  }
  for (size_t i = 0; i < ranges_.size(); ++i) {
    const Range& a = ranges_[i];
    for (size_t j = i + 1; j < ranges_.size(); ++j) {
      const Range& b = ranges_[j];
      if (!a.is_output && !b.is_output) continue;
      if (a.begin >= b.begin + b.bytes || b.begin >= a.begin + a.bytes) continue;
      return error(Code::kInvalidArgument, "`{}` and `{}` overlap; give separate memory", a.name,
                   b.name);
    }
  }
  return {};
}

}  // namespace zbccl::moe
