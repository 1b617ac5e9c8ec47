// A block of test memory between canaries, registered with the library or not, at any offset from
// an aligned address.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

namespace zbccl::test {

class Guarded {
 public:
  using Free = std::function<void(void*)>;

  // `memory` holds total_bytes(bytes, offset) and is given to `free` in the end.
  Guarded(void* memory, size_t bytes, size_t offset, Free free);
  // From malloc.
  static Guarded plain(size_t bytes, size_t offset = 0);
  static size_t total_bytes(size_t bytes, size_t offset);

  std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }
  // Fills the block with a pattern that no result has by chance.
  void poison();
  // True if every byte still has the pattern of poison().
  bool poisoned() const;
  // "" if the canaries are intact, else which one was overwritten and where.
  std::string damage() const;

 private:
  std::unique_ptr<void, Free> memory_;
  std::byte* data_;
  size_t bytes_;
  size_t total_;
};

}  // namespace zbccl::test
