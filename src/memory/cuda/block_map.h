// Which bytes of an address range are handed out, as offsets: nothing here touches memory. Ranges
// that have memory behind them are added and taken away; blocks never leave them. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>

#include "memory/pool.h"

namespace zbccl::cuda {

class BlockMap {
 public:
  static constexpr uint64_t kAlignment = 512;  // as cudaMalloc: every access of a kernel is aligned

  static uint64_t rounded(uint64_t bytes) {
    return (bytes < 1 ? kAlignment : (bytes + kAlignment - 1) / kAlignment * kAlignment);
  }

  // [offset, offset + size) becomes free; it joins free neighbours, which may lie in other ranges.
  void add_range(uint64_t offset, uint64_t size) { insert_free(offset, size); }
  // Takes a wholly free range away.
  void remove_range(uint64_t offset, uint64_t size);
  // True if no block has a byte in the range.
  bool is_free(uint64_t offset, uint64_t size) const;
  // Length of the free range that ends at `end`.
  uint64_t free_before(uint64_t end) const;

  // The smallest free range that holds `size` (a multiple of kAlignment).
  std::optional<uint64_t> allocate(uint64_t size, memory::Use use);
  // Size of the block that was there; 0 if `offset` is not the start of one.
  uint64_t free(uint64_t offset);
  bool is_block(uint64_t offset) const { return blocks_.contains(offset); }

  uint64_t used(memory::Use use) const { return used_[static_cast<size_t>(use)]; }
  uint64_t total_free() const { return total_free_; }

 private:
  struct Block {
    uint64_t size = 0;
    memory::Use use = memory::Use::kUser;
  };
  using Free = std::map<uint64_t, uint64_t>;  // offset to size

  void insert_free(uint64_t offset, uint64_t size);
  void erase_free(Free::iterator it);
  Free::const_iterator free_around(uint64_t offset, uint64_t size) const;

  Free free_;
  std::set<std::pair<uint64_t, uint64_t>> by_size_;  // size, offset
  std::map<uint64_t, Block> blocks_;
  std::array<uint64_t, memory::kNumUses> used_{};
  uint64_t total_free_ = 0;
};

}  // namespace zbccl::cuda
