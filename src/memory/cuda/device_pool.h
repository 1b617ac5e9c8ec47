// One GPU's registered memory in this process: an allocator over one address range that grows by
// chunks which peers map, and a register of memory that others allocated. Any thread.
//
// Segment 0 is the pool's own; its range is reserved once, here and in every peer. Segments 1 and
// up are registered memory, one for each allocation.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "memory/cuda/block_map.h"
#include "memory/cuda/device_id.h"
#include "memory/cuda/driver.h"
#include "memory/device_imports.h"
#include "memory/peer_process.h"
#include "memory/pool.h"

namespace zbccl::cuda {

using memory::kMaxDeviceSegments;
using memory::Location;
using memory::Use;

struct DeviceReport {
  std::array<uint64_t, memory::kNumUses> used{};  // bytes of live blocks, by use
  uint64_t held = 0;                              // physical memory beyond users' live blocks
  uint64_t reserved = 0;                          // address space
  uint64_t foreign = 0;  // bytes of registered memory that others allocated
};

class DevicePool {
 public:
  // The pool of GPU `device` (ordinal), opened by the first call, which takes the GPU into use. It
  // lives as long as the process.
  static Result<DevicePool*> of(int device);
  // The same if it is open, else null.
  static DevicePool* opened(int device);
  // Adds up the pools of all GPUs of the process; takes none into use.
  static DeviceReport total_report();

  int device() const { return device_; }
  const DeviceId& id() const { return id_; }

  // Aligned to 512 bytes; contents undefined. A size of 0 gives a valid, unique pointer. Waits for
  // no peer and no stream.
  Result<void*> allocate(size_t bytes, Use use);
  // kInvalidArgument if `block` is not a live block. No kernel may use it any more.
  Status free(void* block);
  // True if `block` is the start of a live block.
  bool is_block(const void* block) const;

  // The location of [address, address + bytes) in the pool or in registered memory. Lock-free.
  std::optional<Location> locate(const void* address, size_t bytes) const;
  // Address of a segment of this pool; 0 if there is none.
  uint64_t segment_base(uint32_t segment) const {
    return segment < kMaxDeviceSegments ? bases_[segment].load(std::memory_order_acquire) : 0;
  }

  // Registers the allocation that [address, address + bytes) lies in: memory of cudaMalloc, or
  // mapped memory of another library whose handles can be exported. kUnsupported with the reason
  // for any other. Counted: what is added n times is removed n times. Local work only.
  Status add_foreign(const void* address, size_t bytes);
  // `address` as it was added; of several times the first, should the memory have been freed and
  // the address given to another since. With the last one the segment is withdrawn and every peer
  // that has mapped it unmaps it; no kernel of a peer may use it any more. At the deadline
  // kTimeout: it is withdrawn then too, but the owner should not free the memory before peers have
  // let go.
  Status remove_foreign(const void* address, Deadline deadline);
  // True if `address` was added and not removed.
  bool registered(const void* address) const;
  // False if the registered memory was freed, so that its address means something else or nothing.
  bool still_valid(const Location& location) const;

  // Returns once every one of `peers` (this process trivially) has mapped everything that the
  // segment has now. Some loads where nothing is new. Allowed while a stream is captured; waits
  // for no stream and no device.
  using Cancelled = memory::PeerProcess::Cancelled;
  using Peers = std::span<const std::shared_ptr<memory::PeerProcess>>;
  Status share(uint32_t segment, Peers peers, Deadline deadline, const Cancelled& cancelled = {}) {
    const uint64_t now = progress_[segment].load(std::memory_order_acquire);
    for (const auto& peer : peers) {
      if (peer->acknowledged(device_, segment) < now) {
        return share_slowly(segment, peers, deadline, cancelled);
      }
    }
    return {};
  }

  DeviceReport report() const;

  // For the import side: makes what segment 0 has reachable for another GPU of the process.
  Status grant(int other);
  // Makes a registered segment reachable for GPU `other` of the process, as far as that needs
  // doing.
  Status grant_foreign(uint32_t segment, int other);

 private:
  struct Chunk {
    uint64_t size = 0;
    CUmemGenericAllocationHandle handle = 0;
    uint64_t serial = 0;
    bool shown = false;      // a peer may have it
    bool releasing = false;  // being unmapped
  };
  struct Piece {  // of registered memory
    uint64_t offset = 0;
    uint64_t size = 0;
    uint64_t serial = 0;
    CUmemGenericAllocationHandle handle = 0;  // retained; kVmmForeign
  };
  struct Foreign {
    uint64_t base = 0;
    uint64_t size = 0;
    uint64_t use = 0;
    memory::ChunkKind kind = memory::ChunkKind::kIpc;
    uint64_t buffer_id = 0;  // kIpc
    CUipcMemHandle ipc{};
    std::vector<Piece> pieces;  // one of kIpc; what is mapped and registered of kVmmForeign
    std::vector<Piece> gone;    // a peer may still have them mapped; without handles
    int count = 0;
    bool withdrawn = false;  // a peer may still have it mapped
    std::vector<std::weak_ptr<memory::PeerProcess>> shown;
  };
  // Addresses that can be located; of a segment that has holes, one for each run without. Read
  // without a lock: a writer makes `version` odd first.
  struct Range {
    std::atomic<uint32_t> version{0};
    std::atomic<uint32_t> segment{0};
    std::atomic<uint64_t> base{0};
    std::atomic<uint64_t> size{0};    // 0: unused
    std::atomic<uint64_t> origin{0};  // of the segment
  };
  static constexpr size_t kMaxRanges = 1024;
  struct Shown {  // what has to be pushed
    memory::DeviceChunk chunk;
    CUmemGenericAllocationHandle handle = 0;
  };

  explicit DevicePool(int device) : device_(device) {}
  Status open();
  static Status introduce(DevicePool& fresh);

  // device_pool.cc; the caller holds mutex_
  Status extend(uint64_t size);
  Status add_chunk(uint64_t offset, uint64_t size);
  Status set_access(uint64_t offset, uint64_t size);
  void trim(uint64_t keep, bool now);
  void release_chunk(uint64_t offset, bool now);
  void unmap_chunk(uint64_t offset, const Chunk& chunk) const;

  // The register of addresses; the caller holds mutex_.
  void set_range(Range& range, uint32_t segment, uint64_t base, uint64_t size, uint64_t origin);
  Status add_run(uint32_t segment, uint64_t base, uint64_t size, uint64_t origin);
  void drop_runs(uint32_t segment);

  // foreign.cc
  Status describe_ipc(uint64_t address, Foreign* foreign) const;
  Status describe_mapped(uint64_t address, uint64_t bytes, Foreign* foreign) const;
  Result<Piece> piece_at(uint64_t address, const Foreign& foreign) const;
  Status check_owner(uint64_t address) const;
  void release_pieces(const Foreign& foreign) const;
  bool same_piece(const Foreign& foreign, const Piece& piece, uint64_t offset) const;
  // The caller holds mutex_.
  Result<uint32_t> segment_for(const Foreign& seen);
  Result<uint32_t> new_segment(const Foreign& seen);
  Status merge(uint32_t segment, const Foreign& seen);
  void withdraw(uint32_t segment, Foreign& foreign);
  void sweep();
  void sweep_pieces(uint32_t segment, Foreign& foreign);

  Status clean(Deadline deadline, const Cancelled& cancelled);
  Status drop(const Foreign& foreign, const memory::DeviceChunk& what, Deadline deadline,
              const Cancelled& cancelled);
  void forget(uint32_t segment, const Foreign& cleaned);

  // share.cc
  Status share_slowly(uint32_t segment, Peers peers, Deadline deadline, const Cancelled& cancelled);
  Status share_with(const std::shared_ptr<memory::PeerProcess>& peer, uint32_t segment,
                    Deadline deadline, const Cancelled& cancelled);
  std::vector<Shown> news_for(const std::shared_ptr<memory::PeerProcess>& peer, uint32_t segment,
                              uint64_t* progress);

  const int device_;
  DeviceId id_;
  const Driver* driver_ = nullptr;
  CUmemAllocationProp properties_{};
  uint64_t granularity_ = 0;
  uint64_t base_ = 0;
  uint64_t reserve_ = 0;
  uint64_t keep_ = 0;

  std::array<Range, kMaxRanges> ranges_;
  std::atomic<uint32_t> num_ranges_{0};
  std::array<std::atomic<uint64_t>, kMaxDeviceSegments> bases_{};
  // Grows with everything that a segment number gets to have.
  std::array<std::atomic<uint64_t>, kMaxDeviceSegments> progress_{};

  mutable std::mutex mutex_;  // guards everything below
  uint64_t serial_ = 0;
  BlockMap blocks_;
  std::map<uint64_t, Chunk> chunks_;  // by offset
  std::map<uint32_t, Foreign> foreign_;
  std::map<const void*, std::deque<uint64_t>> registrations_;  // `use` for each add_foreign()
  bool unclean_ = false;  // something is withdrawn that peers may still have
};

}  // namespace zbccl::cuda
