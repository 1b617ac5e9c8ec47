// Another process on this machine (or this one) as a place where memory lies. Any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "base/clock.h"
#include "base/fd.h"
#include "base/status.h"
#include "memory/device_imports.h"
#include "memory/exchange_protocol.h"
#include "memory/pool.h"
#include "memory/process_info.h"

namespace zbccl::memory {

class PeerProcess {
 public:
  // Proves itself to the peer's service thread, probes what the system allows and opens a handle on
  // its life.
  // `own_nonce`: of the calling process; without it no device memory can be shown to the peer.
  static Result<std::shared_ptr<PeerProcess>> connect(const ProcessInfo& peer, Deadline deadline,
                                                      uint64_t own_nonce = 0);
  // The calling process as its own peer: its memory is reached as it is.
  static std::shared_ptr<PeerProcess> self(const ProcessInfo& info);
  ~PeerProcess();

  bool is_self() const { return self_; }
  uint64_t nonce() const { return nonce_; }
  int pid() const { return pid_; }
  // Ordinary memory of that process can be read and written from here.
  bool attachable() const { return attachable_; }
  // A pidfd, readable once the process has ended; where there is none, the connection, which then
  // hangs up.
  int life_fd() const { return has_pidfd() ? life_.get() : connection_.get(); }
  bool has_pidfd() const { return life_.valid(); }
  bool dead() const;
  // Stopped by a signal or a debugger, as far as the system tells.
  bool stopped() const;

  // As segment(), but nullptr where it has not been imported yet.
  std::byte* imported(uint32_t number) const {
    return number < kMaxSegments ? bases_[number].load(std::memory_order_acquire) : nullptr;
  }
  // The peer's segment in this process's address space; imported on first use, then lock-free. The
  // import ends with kTimeout at the deadline, and with kAborted soon after `cancelled` is true.
  using Cancelled = std::function<bool()>;
  Result<std::byte*> segment(uint32_t number, Deadline deadline, const Cancelled& cancelled = {}) {
    if (number < kMaxSegments) {
      if (std::byte* base = bases_[number].load(std::memory_order_acquire)) return base;
    }
    return import_segment(number, deadline, cancelled);
  }

  // Shows the peer a chunk of this process's device memory (with a descriptor if `fd` >= 0) and
  // returns once it has mapped it, which waits until the peer uses a GPU. Not for self().
  Status push_chunk(const DeviceChunk& chunk, int fd, Deadline deadline,
                    const Cancelled& cancelled = {});
  // Returns once the peer has no mapping of the segment, or with a size of that part of it, any
  // more.
  Status drop_segment(const DeviceChunk& segment, Deadline deadline,
                      const Cancelled& cancelled = {});

  // Where in its GPU's segment 0 this process may try its mapping of it, and whether the peer's GPU
  // then finds what place.token stands for in place.slot: kCuda if not.
  Result<ProbePlace> probe_place(const std::array<uint8_t, 16>& device, Deadline deadline);
  Status probe_check(const std::array<uint8_t, 16>& device, const ProbePlace& place,
                     Deadline deadline);

  // How much of a segment of GPU `device` (ordinal) the peer is known to have mapped; what the
  // number counts is the owner's business. Never falls.
  uint64_t acknowledged(int device, uint32_t segment) const {
    const Acknowledged* acks = acks_[static_cast<size_t>(device)].load(std::memory_order_acquire);
    return acks == nullptr ? 0 : (*acks)[segment].load(std::memory_order_relaxed);
  }
  void acknowledge(int device, uint32_t segment, uint64_t count);

 private:
  using Acknowledged = std::array<std::atomic<uint64_t>, kMaxDeviceSegments>;

  PeerProcess() = default;
  Result<std::byte*> import_segment(uint32_t number, Deadline deadline, const Cancelled& cancelled);
  Status await_reply(Deadline deadline, const Cancelled& cancelled) const;
  Result<ExchangeReply> ask(ExchangeRequest request, int fd, UniqueFd* received, Deadline deadline,
                            const Cancelled& cancelled);
  Result<ExchangeReply> ask_until_done(const ExchangeRequest& request, int fd, Deadline deadline,
                                       const Cancelled& cancelled);
  Status lock_connection(std::unique_lock<std::mutex>* lock, Deadline deadline,
                         const Cancelled& cancelled);

  bool self_ = false;
  bool attachable_ = false;
  uint64_t nonce_ = 0;
  uint64_t own_nonce_ = 0;
  int pid_ = 0;
  UniqueFd life_;
  std::array<std::atomic<std::byte*>, kMaxSegments> bases_{};
  std::array<std::atomic<Acknowledged*>, kMaxDevices> acks_{};

  std::mutex mutex_;  // guards the connection and the mappings
  UniqueFd connection_;
  uint64_t last_id_ = 0;
  std::array<Mapping, kMaxSegments> mappings_;
};

}  // namespace zbccl::memory
