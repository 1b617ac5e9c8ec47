#include "memory/pool.h"

#include <sys/sysinfo.h>

#include <algorithm>

#include "base/cpu.h"
#include "base/env.h"
#include "base/fork_guard.h"
#include "base/log.h"
#include "memory/numa.h"

namespace zbccl::memory {
namespace {

constexpr size_t kAlignment =
    128;  // a pair of cache lines: no false sharing between blocks, even by prefetch
constexpr size_t kPageBlock = 64 << 10;  // blocks of this size and more start on pages
constexpr size_t kPage = 4096;
constexpr size_t kGrowth = 1 << 20;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }
size_t alignment_of(size_t size) { return size >= kPageBlock ? kPage : kAlignment; }

size_t default_reserve() {
  const auto configured = static_cast<size_t>(env::get_integer("ZBCCL_POOL_RESERVE"));
  if (configured > 0) return configured;
  struct sysinfo info = {};
  const size_t total =
      sysinfo(&info) == 0 ? static_cast<size_t>(info.totalram) * info.mem_unit : size_t{1} << 30;
  return std::clamp(total, size_t{64} << 20, size_t{64} << 30);
}

// Without this a page lies where the rank runs that touches it first, which for an output is often
// a peer.
void place(const Segment& segment) {
  if (!env::get_bool("ZBCCL_NUMA")) return;
  const int node = home_node(usable_cpus());
  if (node < 0) return;
  const Status placed = prefer_node(segment.base(), segment.reserved(), node);
  if (!placed.ok()) log::info(log::Subsys::kMem, "{}", placed.message());
}

}  // namespace

Pool& Pool::process() {
  static std::atomic<Pool*> pool{nullptr};
  static std::atomic<uint32_t> generation{0};
  static std::atomic_flag making =
      ATOMIC_FLAG_INIT;  // a mutex could be held by a thread that fork() left behind
  Pool* current = pool.load(std::memory_order_acquire);
  if (current != nullptr && generation.load(std::memory_order_acquire) == fork_generation())
    return *current;
  while (making.test_and_set(std::memory_order_acquire)) {
  }
  current = pool.load(std::memory_order_acquire);
  if (current == nullptr || generation.load(std::memory_order_acquire) != fork_generation()) {
    current = new Pool;  // lives as long as the process; a parent's pool is left alone
    pool.store(current, std::memory_order_release);
    generation.store(fork_generation(), std::memory_order_release);
  }
  making.clear(std::memory_order_release);
  return *current;
}

Pool::Pool() : keep_(static_cast<size_t>(env::get_integer("ZBCCL_POOL_KEEP"))) {}

Status Pool::add_segment(size_t at_least) {
  const uint32_t index = num_segments_.load(std::memory_order_relaxed);
  if (index == kMaxSegments) {
    return error(Code::kOutOfMemory, "the pool has {} segments, the most it can have",
                 kMaxSegments);
  }
  const size_t reserve = std::max(default_reserve(), round_up(at_least, kPage));
  auto segment = Segment::create(reserve);
  if (!segment.ok() && reserve > at_least) segment = Segment::create(round_up(at_least, kPage));
  if (!segment.ok()) return segment.status();
  place(**segment);
  ranges_[index] = {reinterpret_cast<uintptr_t>((*segment)->base()), (*segment)->reserved()};
  log::trace(log::Subsys::kMem, "segment {} reserves {} bytes", index, (*segment)->reserved());
  segments_.push_back(std::move(*segment));
  used_end_.push_back(0);
  num_segments_.store(index + 1, std::memory_order_release);
  return {};
}

void Pool::insert_free(uintptr_t at, size_t size) {
  free_by_address_.emplace(at, size);
  free_by_size_.emplace(size, at);
}

void Pool::erase_free(std::map<uintptr_t, size_t>::iterator it) {
  free_by_size_.erase({it->second, it->first});
  free_by_address_.erase(it);
}

// The smallest free range that holds `size` with its alignment; 0 if there is none.
uintptr_t Pool::take_free(size_t size) {
  const size_t alignment = alignment_of(size);
  for (auto it = free_by_size_.lower_bound({size, 0}); it != free_by_size_.end(); ++it) {
    const auto [range, at] = *it;
    const uintptr_t start = round_up(at, alignment);
    if (start + size > at + range) continue;
    erase_free(free_by_address_.find(at));
    if (start > at) insert_free(at, start - at);
    if (start + size < at + range) insert_free(start + size, at + range - start - size);
    free_dirty_ -= std::min(free_dirty_, size);
    return start;
  }
  return 0;
}

// A range that was never handed out, at the end of a segment.
Result<uintptr_t> Pool::extend(size_t size) {
  const size_t alignment = alignment_of(size);
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (size_t i = 0; i < segments_.size(); ++i) {
      const size_t start = round_up(used_end_[i], alignment);
      if (start > segments_[i]->reserved() || size > segments_[i]->reserved() - start) continue;
      const size_t end = std::min(round_up(start + size, kGrowth), segments_[i]->reserved());
      ZBCCL_RETURN_IF_ERROR(segments_[i]->grow(end));
      const uintptr_t base = ranges_[i].base;
      if (start > used_end_[i]) insert_free(base + used_end_[i], start - used_end_[i]);
      used_end_[i] = start + size;
      return base + start;
    }
    ZBCCL_RETURN_IF_ERROR(add_segment(size));
  }
  return error(Code::kInternal, "a fresh segment has no room for {} bytes", size);
}

Result<void*> Pool::allocate(size_t bytes, Use use) {
  if (bytes > (size_t{1} << 46))
    return error(Code::kOutOfMemory, "cannot allocate {} bytes", bytes);
  const size_t size = round_up(std::max(bytes, size_t{1}), kAlignment);
  const std::lock_guard lock(mutex_);
  uintptr_t at = take_free(size);
  if (at == 0) {
    ZBCCL_ASSIGN_OR_RETURN(at, extend(size));
  }
  blocks_[at] = Block{size, use, 0, false};
  return reinterpret_cast<void*>(at);
}

std::map<uintptr_t, Pool::Block>::iterator Pool::block_of(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  auto it = blocks_.upper_bound(at);
  if (it == blocks_.begin()) return blocks_.end();
  --it;
  return at - it->first < it->second.size ? it : blocks_.end();
}

Status Pool::free(void* block) {
  const std::lock_guard lock(mutex_);
  const auto it = blocks_.find(reinterpret_cast<uintptr_t>(block));
  if (it == blocks_.end() || it->second.freed) {
    return error(Code::kInvalidArgument, "{} is not the start of a live block of the pool", block);
  }
  if (it->second.leases > 0) {
    it->second.freed = true;
    return {};
  }
  give_back(it->first, it->second.size);
  blocks_.erase(it);
  return {};
}

// Joins the range with its free neighbours in the same segment.
void Pool::give_back(uintptr_t at, size_t size) {
  free_dirty_ += size;
  const auto is_base = [&](uintptr_t address) {
    return std::any_of(ranges_.begin(),
                       ranges_.begin() + num_segments_.load(std::memory_order_relaxed),
                       [&](const Range& range) { return range.base == address; });
  };
  const auto next = free_by_address_.find(at + size);
  if (next != free_by_address_.end() && !is_base(next->first)) {
    size += next->second;
    erase_free(next);
  }
  auto previous = free_by_address_.lower_bound(at);
  if (previous != free_by_address_.begin() && !is_base(at)) {
    --previous;
    if (previous->first + previous->second == at) {
      at = previous->first;
      size += previous->second;
      erase_free(previous);
    }
  }
  insert_free(at, size);
  if (free_dirty_ > keep_) trim();
}

void Pool::trim() {
  for (const auto& [at, size] : free_by_address_) {
    const auto location = locate(reinterpret_cast<void*>(at), size);
    if (location) segments_[location->segment]->release(location->offset, size);
  }
  free_dirty_ = 0;
}

bool Pool::lease(const void* address) {
  if (!locate(address, 0)) return false;
  const std::lock_guard lock(mutex_);
  const auto it = block_of(address);
  if (it == blocks_.end() || it->second.freed) return false;
  ++it->second.leases;
  return true;
}

void Pool::release(const void* address) {
  const std::lock_guard lock(mutex_);
  const auto it = block_of(address);
  if (it == blocks_.end() || it->second.leases == 0) return;
  if (--it->second.leases == 0 && it->second.freed) {
    give_back(it->first, it->second.size);
    blocks_.erase(it);
  }
}

Result<std::pair<int, size_t>> Pool::segment_handle(uint32_t segment) {
  const std::lock_guard lock(mutex_);
  if (segment >= segments_.size()) {
    return error(Code::kInvalidArgument, "segment {} does not exist; there are {}", segment,
                 segments_.size());
  }
  return std::pair(segments_[segment]->fd(), segments_[segment]->reserved());
}

PoolReport Pool::report() {
  const std::lock_guard lock(mutex_);
  PoolReport report;
  report.free = free_dirty_;
  for (const auto& [at, block] : blocks_) report.used[static_cast<size_t>(block.use)] += block.size;
  for (const auto& segment : segments_) {
    report.resident += segment->resident();
    report.reserved += segment->reserved();
  }
  return report;
}

}  // namespace zbccl::memory
