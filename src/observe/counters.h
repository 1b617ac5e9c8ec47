// What the library moved besides the one necessary time, and what it holds. Process-wide and per
// communicator; any thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace zbccl::observe {

// Payload counted: staged (moved once more only to move it), landing (left in library memory by a
// reduction on its way), attached (moved by the kernel straight between two processes).
struct Traffic {
  std::atomic<uint64_t> staged{0};
  std::atomic<uint64_t> landing{0};
  std::atomic<uint64_t> attached{0};
  std::atomic<uint64_t> direct_calls{0};
  std::atomic<uint64_t> staged_calls{0};

  void add_staged(uint64_t bytes) { staged.fetch_add(bytes, std::memory_order_relaxed); }
  void add_attached(uint64_t bytes) { attached.fetch_add(bytes, std::memory_order_relaxed); }
  void add_landing(uint64_t bytes) { landing.fetch_add(bytes, std::memory_order_relaxed); }
};

// Of this process since it started.
inline Traffic& process_traffic() {
  static Traffic* const traffic = new Traffic;  // outlives every thread
  return *traffic;
}

}  // namespace zbccl::observe
