// Host memory that stands for ranges of device memory: ranges that overlap on the device do so
// here, in the same way; others lie apart. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace zbccl::cuda {

class Mirror {
 public:
  void add(const void* data, size_t bytes);
  // After the last add(): how much memory is needed.
  size_t arrange();
  // Where that is; aligned to 128 bytes.
  void place(void* base) { base_ = static_cast<std::byte*>(base); }
  // What stands for an address of one of the ranges; any other address as it is.
  void* at(const void* address) const;

 private:
  struct Region {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    size_t offset = 0;
  };
  std::vector<Region> regions_;  // by address, once arranged
  std::byte* base_ = nullptr;
};

}  // namespace zbccl::cuda
