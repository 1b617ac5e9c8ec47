// One rank's part in dispatch and combine: who holds which expert, who is masked, and the calls.
// The arguments are the structs of the C API, which documents them. One thread at a time, except
// report() and what handles use of it.
//
// Every call is one operation of the team: the ranks show what they ask for on their boards, meet,
// compare, and then each rank reads what it needs from its peers' memory (docs/moe.md).
#pragma once

#include <zbccl/moe.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "collectives/collective.h"
#include "moe/board.h"
#include "moe/device.h"
#include "moe/experts.h"

namespace zbccl::moe {

class Handle;

class Moe : public std::enable_shared_from_this<Moe> {
 public:
  ~Moe();

  // Collective. `local`: what is wrong with the caller's arguments already.
  static Result<std::shared_ptr<Moe>> create(collectives::Context& context,
                                             const zbcclMoeConfig_t& config, const Status& local,
                                             Milliseconds timeout);

  // Collective: fills in `handle`.
  Status route(collectives::Context& context, const zbcclMoeRouting_t& routing, Handle& handle,
               const Status& local, Milliseconds timeout);
  Status dispatch(collectives::Context& context, const zbcclMoeDispatch_t& call, Handle& handle,
                  const Status& local, Milliseconds timeout);
  Status combine(collectives::Context& context, const zbcclMoeCombine_t& call, Handle& handle,
                 const Status& local, Milliseconds timeout);

  const ExpertMap& map() const { return map_; }
  int rank() const { return rank_; }
  Board& board() { return board_; }
  // The GPU that calls on device memory are on, or kHostMemory.
  int device() const;
  int32_t number() const { return number_; }

  Status set_mask(int rank, bool masked);
  bool masked(int rank) const { return masked_[static_cast<size_t>(rank)] != 0; }
  const std::vector<uint8_t>& mask() const { return masked_; }

  void fill(zbcclMoeReport_t* report) const;
  void note_dispatch_blocks(int blocks) {
    dispatch_blocks_.store(blocks, std::memory_order_relaxed);
  }
  void note_combine_blocks(int blocks) { combine_blocks_.store(blocks, std::memory_order_relaxed); }
  void count_staged(uint64_t bytes) { staged_.fetch_add(bytes, std::memory_order_relaxed); }

  // Tables of handles. Any thread.
  struct Block {
    std::byte* data = nullptr;
    size_t bytes = 0;
  };
  Result<Block> take_block(size_t bytes);
  void give_block(Block block);
  void count_handle(int64_t handles, int64_t metadata_bytes);

 private:
  Moe() = default;
  // By the arguments that the handle has.
  Status route_now(collectives::Context& context, Handle& handle, const Status& local,
                   Milliseconds timeout);
  Status route_on_host(collectives::Context& context, Handle& handle, const Status& local,
                       Milliseconds timeout);
  // What device memory needs of a handle's routing.
  Status check_device(const Handle& handle) const;
  Status route_and_dispatch(collectives::Context& context, const zbcclMoeDispatch_t& call,
                            Handle& handle, const Status& local, Milliseconds timeout);

  ExpertMap map_;
  int rank_ = 0;
  int32_t number_ = 0;
  Board board_;
  std::unique_ptr<DeviceHalf> device_;
  std::vector<uint8_t> masked_;
  int64_t routed_ = 0;  // numbers the handles, alike on every rank

  std::atomic<uint64_t> staged_{0};
  std::atomic<uint64_t> routes_{0};
  std::atomic<uint64_t> dispatches_{0};
  std::atomic<uint64_t> combines_{0};
  std::atomic<int32_t> dispatch_blocks_{0};  // of the last call on the device
  std::atomic<int32_t> combine_blocks_{0};
  std::atomic<int64_t> handles_{0};
  std::atomic<int64_t> handle_bytes_{0};

  mutable std::mutex mutex_;
  std::vector<Block> spare_;
};

// Where arrays are: the ordinal of their GPU, or this.
inline constexpr int kHostMemory = -1;
// An array of `device` lies at a multiple of its `element`; null is accepted.
Status check_array(const void* address, size_t element, const char* name, int device);

// A call's ranges of memory of one kind, which must not share a byte with an output.
class Ranges {
 public:
  // `element`: 1 for rows and indices, which may lie anywhere.
  void input(const void* address, size_t bytes, size_t element, const char* name) {
    add({reinterpret_cast<uintptr_t>(address), bytes, element, name, false});
  }
  void output(const void* address, size_t bytes, size_t element, const char* name) {
    add({reinterpret_cast<uintptr_t>(address), bytes, element, name, true});
  }
  Status check(int device) const;

 private:
  struct Range {
    uintptr_t begin;
    size_t bytes;
    size_t element;
    const char* name;
    bool is_output;
  };
  void add(const Range& range) {
    if (range.begin != 0 && range.bytes > 0) ranges_.push_back(range);
  }
  std::vector<Range> ranges_;
};

}  // namespace zbccl::moe
