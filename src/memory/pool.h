// The process's registered memory: an allocator over segments. All communicators and all ranks of
// the process share it. Any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "base/status.h"
#include "memory/segment.h"

namespace zbccl::memory {

// What a block is for; the memory report counts them apart.
enum class Use : int { kUser = 0, kMetadata, kScratch, kStaging };
inline constexpr size_t kNumUses = 4;

inline constexpr size_t kMaxSegments = 256;

// Where registered memory lies, in words that mean the same in every process.
struct Location {
  uint32_t segment = 0;
  uint64_t offset = 0;
};

struct PoolReport {
  std::array<uint64_t, kNumUses> used{};  // bytes of live blocks, by use
  uint64_t free = 0;                      // free bytes that may have memory behind them
  uint64_t resident = 0;                  // physical memory of all segments
  uint64_t reserved = 0;                  // address space
};

class Pool {
 public:
  // The one pool of this process; a forked child gets a fresh one.
  static Pool& process();

  Pool();

  // Aligned to 128 bytes; contents undefined. A size of 0 gives a valid, unique pointer.
  Result<void*> allocate(size_t bytes, Use use);
  // kInvalidArgument if `block` is not a live block. A leased block is reused only after its last
  // lease.
  Status free(void* block);

  // The location of [address, address + bytes) if it lies in the pool. Lock-free.
  std::optional<Location> locate(const void* address, size_t bytes) const {
    const auto at = reinterpret_cast<uintptr_t>(address);
    const uint32_t count = num_segments_.load(std::memory_order_acquire);
    for (uint32_t i = 0; i < count; ++i) {
      const uintptr_t base = ranges_[i].base;
      if (at >= base && at - base < ranges_[i].size && bytes <= ranges_[i].size - (at - base)) {
        return Location{i, at - base};
      }
    }
    return std::nullopt;
  }
  // The base of an own segment; nullptr if there is none of this number.
  std::byte* segment_base(uint32_t segment) const {
    return segment < num_segments_.load(std::memory_order_acquire)
               ? reinterpret_cast<std::byte*>(ranges_[segment].base)
               : nullptr;
  }
  // For exporting: descriptor (owned by the pool) and reserve of a segment.
  Result<std::pair<int, size_t>> segment_handle(uint32_t segment);

  // Keeps the block that `address` lies in from being reused until release(). False if it lies in
  // no live block.
  bool lease(const void* address);
  void release(const void* address);

  PoolReport report();

 private:
  struct Range {
    uintptr_t base = 0;
    size_t size = 0;
  };
  struct Block {
    size_t size = 0;
    Use use = Use::kUser;
    uint32_t leases = 0;
    bool freed = false;
  };
  using FreeBySize = std::set<std::pair<size_t, uintptr_t>>;

  Status add_segment(size_t at_least);
  uintptr_t take_free(size_t size);
  Result<uintptr_t> extend(size_t size);
  void give_back(uintptr_t at, size_t size);
  void insert_free(uintptr_t at, size_t size);
  void erase_free(std::map<uintptr_t, size_t>::iterator it);
  void trim();
  std::map<uintptr_t, Block>::iterator block_of(const void* address);

  std::array<Range, kMaxSegments> ranges_;
  std::atomic<uint32_t> num_segments_{0};

  std::mutex mutex_;  // guards everything below
  std::vector<std::unique_ptr<Segment>> segments_;
  std::vector<size_t> used_end_;  // first byte of each segment that was never handed out
  std::map<uintptr_t, Block> blocks_;
  std::map<uintptr_t, size_t> free_by_address_;
  FreeBySize free_by_size_;
  size_t free_dirty_ = 0;  // free bytes that may have pages behind them
  size_t keep_ = 0;
};

// A lease as an owner. Move-only.
class Lease {
 public:
  Lease() = default;
  // Leases nothing if `address` is not in the pool.
  explicit Lease(const void* address)
      : address_(Pool::process().lease(address) ? address : nullptr) {}
  Lease(Lease&& other) noexcept : address_(std::exchange(other.address_, nullptr)) {}
  Lease& operator=(Lease&& other) noexcept {
    std::swap(address_, other.address_);
    return *this;
  }
  ~Lease() {
    if (address_ != nullptr) Pool::process().release(address_);
  }

 private:
  const void* address_ = nullptr;
};

}  // namespace zbccl::memory
