// A benchmark's memory: registered, or like any program's. Every page of it is there, brought in by
// the rank that owns it, before anything is timed.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <zbccl/zbccl.hpp>

namespace zbccl::tools {

class Memory {
 public:
  Memory(size_t bytes, bool registered) {
    bytes = std::max<size_t>(bytes, 1);
    if (registered) {
      registered_ = Buffer<std::byte>(bytes);
    } else {
      plain_.reset(std::malloc(bytes));
      if (plain_ == nullptr) throw std::bad_alloc();
    }
    std::memset(data(), 1, bytes);
  }
  void* data() const { return plain_ != nullptr ? plain_.get() : registered_.data(); }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  Buffer<std::byte> registered_;
  std::unique_ptr<void, Free> plain_;
};

}  // namespace zbccl::tools
