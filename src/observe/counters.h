// What the library moved besides the one necessary time. Process-wide and per communicator; any
// thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace zbccl::observe {

// A count that one thread at a time adds to and any thread reads: no locked instruction.
class Count {
 public:
  void add(uint64_t n) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  uint64_t get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// Payload counted: staged (moved once more only to move it), landing (left in library memory by a
// reduction on its way), attached (moved by the kernel straight between two processes).
struct Traffic {
  Count staged;
  Count landing;
  Count attached;
  Count direct_calls;
  Count staged_calls;
};

struct Totals {
  uint64_t staged = 0;
  uint64_t landing = 0;
  uint64_t attached = 0;
  uint64_t direct_calls = 0;
  uint64_t staged_calls = 0;
};

// Of the calling thread; a thread that ends leaves its counts to one that begins.
Traffic& thread_traffic();
// Of this process since it started.
Totals process_totals();

}  // namespace zbccl::observe
