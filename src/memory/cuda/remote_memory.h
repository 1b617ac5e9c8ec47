// What one GPU of this process reaches of a GPU in another process, or in this one. Any thread.
// Communicators share it; it keeps the peer's memory mapped.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/clock.h"
#include "memory/cuda/device_id.h"
#include "memory/cuda/device_table.h"
#include "memory/cuda/imports.h"
#include "memory/peer_process.h"

namespace zbccl::cuda {

// Of a GPU's way to another one's memory.
struct Reach {
  bool mapped = false;
  std::string why;  // it is not, in words for people
};

class RemoteMemory {
 public:
  // Takes GPU `local` (and for this process itself the other GPU) into use. What the peer shows
  // appears in it as it is acknowledged; before that its entries are 0.
  static Result<std::shared_ptr<RemoteMemory>> open(
      const std::shared_ptr<memory::PeerProcess>& process, const DeviceId& id, int local_device);
  ~RemoteMemory();
  RemoteMemory(const RemoteMemory&) = delete;
  RemoteMemory& operator=(const RemoteMemory&) = delete;

  // kMaxDeviceSegments addresses in the memory of GPU `local`, 0 where nothing is mapped. An entry
  // has arrived there, or at least in host_table(), before its owner's share() returns.
  const uint64_t* table() const { return table_.address(); }
  // In host memory that kernels can read: has an entry before the other does.
  const uint64_t* host_table() const { return table_.host_address(); }
  // The same from the host.
  uint64_t base(uint32_t segment) const { return bases_[segment].load(std::memory_order_acquire); }
  const DeviceId& id() const { return id_; }
  int local() const { return local_; }

  // What probe_reach() found, if it was asked.
  std::optional<Reach> reach() const;
  void set_reach(const Reach& reach);

 private:
  friend class Imports;
  RemoteMemory() = default;
  Status reach_own();
  // Under the mutex of Imports.
  Status set(uint32_t segment, uint64_t address);

  bool self_ = false;
  int owner_device_ = -1;  // self_: ordinal
  uint64_t owner_ = 0;
  DeviceId id_;
  int local_ = -1;
  DeviceTable table_;
  std::array<std::atomic<uint64_t>, memory::kMaxDeviceSegments> bases_{};
  std::shared_ptr<ImportedProcess> process_;
  mutable std::mutex reach_mutex_;
  std::optional<Reach> reach_;
};

}  // namespace zbccl::cuda
