// Keys and values of the tokens so far, for the key/value heads of one rank. One thread.
//
// The rows of one (layer, head) lie together in order of position, so that a prefix of it is one
// contiguous range of memory.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

namespace llm {

class KvCache {
 public:
  KvCache(int layers, int heads, int positions, int head_dim)
      : heads_(heads),
        positions_(positions),
        head_dim_(head_dim),
        keys_(static_cast<size_t>(layers) * heads * positions * head_dim),
        values_(keys_.size()) {}

  int capacity() const { return positions_; }
  int length() const { return length_; }
  void set_length(int length) { length_ = length; }

  void put(int layer, int head, int position, std::span<const float> key,
           std::span<const float> value) {
    const size_t at = offset(layer, head) + static_cast<size_t>(position) * head_dim_;
    std::copy(key.begin(), key.end(), keys_.begin() + static_cast<std::ptrdiff_t>(at));
    std::copy(value.begin(), value.end(), values_.begin() + static_cast<std::ptrdiff_t>(at));
  }
  // [positions, head_dim]
  const float* keys(int layer, int head) const { return keys_.data() + offset(layer, head); }
  const float* values(int layer, int head) const { return values_.data() + offset(layer, head); }
  size_t bytes() const { return 2 * keys_.size() * sizeof(float); }

 private:
  size_t offset(int layer, int head) const {
    return (static_cast<size_t>(layer) * heads_ + head) * positions_ * head_dim_;
  }

  int heads_, positions_, head_dim_;
  int length_ = 0;
  std::vector<float> keys_, values_;
};

}  // namespace llm
