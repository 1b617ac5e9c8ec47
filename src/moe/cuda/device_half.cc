#include "moe/cuda/device_half.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/env.h"
#include "memory/cuda/driver.h"

namespace zbccl::moe {

using memory::Use;

namespace {

constexpr size_t kUnit = 256;
constexpr int kCountsAtOnce = 8;  // HostCounts that are made together

size_t round_up(size_t bytes) { return (bytes + kUnit - 1) / kUnit * kUnit; }

}  // namespace

Result<std::unique_ptr<CudaHalf>> CudaHalf::create(cuda::Engine& engine, Moe& moe) {
  auto half = std::unique_ptr<CudaHalf>(new CudaHalf(engine, moe));
  half->view_.experts = moe.map().num_experts();
  const cuda::DeviceGuard guard(engine.device());
  ZBCCL_RETURN_IF_ERROR(guard.status());
  ZBCCL_RETURN_IF_ERROR(half->make_board());
  ZBCCL_RETURN_IF_ERROR(half->make_tables());
  ZBCCL_RETURN_IF_ERROR(half->add_counts());
  return half;
}

// Peers' kernels write it: it stays until every peer has left.
Status CudaHalf::make_board() {
  cuda::DeviceTeam& team = engine_.team();
  const size_t bytes = cuda::moe_board_bytes(view_.experts, team.size());
  ZBCCL_ASSIGN_OR_RETURN(void* const board, team.pool().allocate(bytes, Use::kMetadata));
  team.keep_until_left({board, [&pool = team.pool()](void* it) { (void)pool.free(it); }});
  // Words of no operation: what carries an epoch begins at the base, as in DeviceTeam.
  const auto base = static_cast<uint32_t>(env::get_integer("ZBCCL_EPOCH_BASE"));
  const std::vector<uint64_t> fresh(bytes / sizeof(uint64_t), base);
  ZBCCL_RETURN_IF_ERROR(team.write(board, fresh.data(), bytes));
  own_bytes_ += bytes;
  ZBCCL_ASSIGN_OR_RETURN(board_, team.show(board, bytes));
  return {};
}

Status CudaHalf::connect(std::span<const Board> boards) {
  cuda::DeviceTeam& team = engine_.team();
  for (int r = 0; r < team.size(); ++r) {
    const Board& theirs = boards[static_cast<size_t>(r)];
    void* const board = team.reach(r, {theirs.high, theirs.low});
    if (board == nullptr) {
      return error(Code::kInternal, "the board of rank {} is not mapped", r);
    }
    view_.board[r] = static_cast<uint64_t*>(board);
  }
  return {};
}

// The map of experts, and what the kernels of a route hand to each other.
Status CudaHalf::make_tables() {
  cuda::DeviceTeam& team = engine_.team();
  const ExpertMap& map = moe_.map();
  const auto experts = static_cast<size_t>(view_.experts);
  const auto words = static_cast<size_t>(this->words());
  const size_t most = std::max(experts, static_cast<size_t>(team.size()));
  const size_t map_bytes = round_up(3 * experts * sizeof(int32_t));
  const size_t limit_bytes = round_up(most * sizeof(int32_t));
  const size_t chunk_bytes = round_up(cuda::kRouteBlocks * words * sizeof(int32_t));
  const size_t bytes = map_bytes + 2 * limit_bytes + chunk_bytes;
  ZBCCL_ASSIGN_OR_RETURN(const Block block, take_block(bytes));
  own_bytes_ += block.bytes;
  block_bytes_ -= block.bytes;  // no handle's
  std::vector<int32_t> tables;
  for (int32_t e = 0; e < view_.experts; ++e) tables.push_back(map.rank_of(e));
  for (int32_t e = 0; e < view_.experts; ++e) tables.push_back(map.local_of(e));
  for (const int32_t expert : map.by_place()) tables.push_back(expert);
  ZBCCL_RETURN_IF_ERROR(team.write(block.data, tables.data(), tables.size() * sizeof(int32_t)));
  auto* const ints = reinterpret_cast<int32_t*>(block.data);
  view_.rank_of = ints;
  view_.local_of = ints + experts;
  view_.by_place = ints + 2 * experts;
  for (int r = 0; r < team.size(); ++r) view_.first_place[r] = map.first_place(r);
  view_.first_place[team.size()] = view_.experts;
  view_.starts = reinterpret_cast<int32_t*>(block.data + map_bytes);
  view_.limits = reinterpret_cast<int32_t*>(block.data + map_bytes + limit_bytes);
  view_.chunk_counts = reinterpret_cast<int32_t*>(block.data + map_bytes + 2 * limit_bytes);
  return {};
}

Result<CudaHalf::Block> CudaHalf::take_block(size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < spare_.size(); ++i) {
      if (spare_[i].bytes < bytes) continue;
      const Block block = spare_[i];
      spare_.erase(spare_.begin() + static_cast<ptrdiff_t>(i));
      return block;
    }
  }
  cuda::DeviceTeam& team = engine_.team();
  bytes = round_up(bytes);
  ZBCCL_ASSIGN_OR_RETURN(void* const data, team.pool().allocate(bytes, Use::kMetadata));
  team.keep_until_left({data, [&pool = team.pool()](void* it) { (void)pool.free(it); }});
  const std::lock_guard lock(mutex_);
  block_bytes_ += bytes;
  return Block{static_cast<char*>(data), bytes};
}

// Smallest first, so that a large one is not taken for little.
void CudaHalf::give_block(Block block) {
  const std::lock_guard lock(mutex_);
  const auto at = std::find_if(spare_.begin(), spare_.end(),
                               [&](const Block& other) { return other.bytes >= block.bytes; });
  spare_.insert(at, block);
}

// Pinned memory is made for several handles at once: the driver may wait for the device meanwhile.
Status CudaHalf::add_counts() {
  const size_t words =
      static_cast<size_t>(engine_.team().size()) * static_cast<size_t>(this->words());
  const size_t words_bytes = round_up(words * sizeof(int32_t));
  const size_t each = words_bytes + kUnit;
  ZBCCL_ASSIGN_OR_RETURN(const cuda::Driver* const table, cuda::driver());
  const cuda::RelaxedCapture relaxed(*table);
  void* slab = nullptr;
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaHostAlloc(&slab, kCountsAtOnce * each, cudaHostAllocPortable),
                             "pinned memory for counts");
  engine_.team().keep_until_left({slab, [](void* it) { (void)cudaFreeHost(it); }});
  std::memset(slab, 0, kCountsAtOnce * each);
  const std::lock_guard lock(mutex_);
  for (int i = 0; i < kCountsAtOnce; ++i) {
    char* const at = static_cast<char*>(slab) + static_cast<size_t>(i) * each;
    HostCounts counts;
    counts.words = reinterpret_cast<int32_t*>(at);
    counts.totals = reinterpret_cast<cuda::MoeTotals*>(at + words_bytes);
    counts.done = reinterpret_cast<uint32_t*>(at + words_bytes + kUnit / 2);
    spare_counts_.push_back(counts);
  }
  return {};
}

Result<HostCounts> CudaHalf::take_counts() {
  bool any = false;
  {
    const std::lock_guard lock(mutex_);
    any = !spare_counts_.empty();
  }
  if (!any) ZBCCL_RETURN_IF_ERROR(add_counts());
  const std::lock_guard lock(mutex_);
  const HostCounts counts = spare_counts_.back();
  spare_counts_.pop_back();
  *counts.done = 0;
  return counts;
}

void CudaHalf::give_counts(const HostCounts& counts) {
  const std::lock_guard lock(mutex_);
  spare_counts_.push_back(counts);
}

uint64_t CudaHalf::held_bytes() const {
  const std::lock_guard lock(mutex_);
  uint64_t bytes = own_bytes_;
  for (const Block& block : spare_) bytes += block.bytes;
  return bytes;
}

cuda::EntryCall CudaHalf::entry_for(Operation operation, uint32_t settings, int blocks,
                                    uint64_t count) const {
  cuda::Entry entry = {};
  entry.operation = static_cast<uint32_t>(operation) | settings << 8;
  entry.shape = (static_cast<uint32_t>(moe_.number()) & 0xffff) | static_cast<uint32_t>(blocks)
                                                                      << 16;
  entry.count_low = static_cast<uint32_t>(count);
  entry.count_high = static_cast<uint32_t>(count >> 32);
  entry.in_high = entry.out_high = cuda::kNoSegment << 16;
  cuda::EntryCall call;
  for (int r = 0; r < engine_.team().size(); ++r) {
    call.entry[r] = entry;
    call.expected[r] = count;
  }
  return call;
}

int CudaHalf::blocks_for(const collectives::Context& context, int blocks) const {
  const int limit = engine_.block_limit(context.launch);
  return std::clamp(limit > 0 ? std::min(limit, blocks) : blocks, 1, cuda::kMaxBlocks);
}

Result<std::unique_ptr<DeviceHalf>> make_device_half(collectives::Context& context, Moe& moe) {
  // Of GPUs that do not reach each other's memory the engine is another one.
  if (moe.map().num_experts() > cuda::kMostMoeExperts || !context.device->unreached().empty()) {
    return std::unique_ptr<DeviceHalf>();
  }
  ZBCCL_ASSIGN_OR_RETURN(auto half,
                         CudaHalf::create(static_cast<cuda::Engine&>(*context.device), moe));
  return std::unique_ptr<DeviceHalf>(std::move(half));
}

}  // namespace zbccl::moe
