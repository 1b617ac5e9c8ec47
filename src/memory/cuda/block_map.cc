#include "memory/cuda/block_map.h"

namespace zbccl::cuda {

void BlockMap::erase_free(Free::iterator it) {
  by_size_.erase({it->second, it->first});
  total_free_ -= it->second;
  free_.erase(it);
}

void BlockMap::insert_free(uint64_t offset, uint64_t size) {
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + size) {
    size += next->second;
    erase_free(next++);
  }
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      offset = previous->first;
      size += previous->second;
      erase_free(previous);
    }
  }
  free_.emplace(offset, size);
  by_size_.emplace(size, offset);
  total_free_ += size;
}

BlockMap::Free::const_iterator BlockMap::free_around(uint64_t offset, uint64_t size) const {
  auto it = free_.upper_bound(offset);
  if (it == free_.begin()) return free_.end();
  --it;
  return it->first + it->second >= offset + size ? it : free_.end();
}

bool BlockMap::is_free(uint64_t offset, uint64_t size) const {
  return free_around(offset, size) != free_.end();
}

uint64_t BlockMap::free_before(uint64_t end) const {
  auto it = free_.lower_bound(end);
  if (it == free_.begin()) return 0;
  --it;
  return it->first + it->second == end ? it->second : 0;
}

void BlockMap::remove_range(uint64_t offset, uint64_t size) {
  const auto around = free_around(offset, size);
  if (around == free_.end()) return;
  const auto [at, length] = *around;
  erase_free(free_.find(at));
  if (offset > at) insert_free(at, offset - at);
  if (at + length > offset + size) insert_free(offset + size, at + length - offset - size);
}

std::optional<uint64_t> BlockMap::allocate(uint64_t size, memory::Use use) {
  const auto best = by_size_.lower_bound({size, 0});
  if (best == by_size_.end()) return std::nullopt;
  const auto [length, offset] = *best;
  erase_free(free_.find(offset));
  if (length > size) insert_free(offset + size, length - size);
  blocks_[offset] = {size, use};
  used_[static_cast<size_t>(use)] += size;
  return offset;
}

uint64_t BlockMap::free(uint64_t offset) {
  const auto it = blocks_.find(offset);
  if (it == blocks_.end()) return 0;
  const Block block = it->second;
  blocks_.erase(it);
  used_[static_cast<size_t>(block.use)] -= block.size;
  insert_free(offset, block.size);
  return block.size;
}

}  // namespace zbccl::cuda
