// The ranks of one communicator with everything they show each other mapped: what collectives run
// on.
//
// One thread at a time runs operations; fail() and failure() may be called from any thread. Waits
// end with an error when the deadline passes, a peer dies, or somebody gives up; never with a hang.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/status.h"
#include "memory/peer_process.h"
#include "memory/pool.h"
#include "observe/counters.h"
#include "transport/control_block.h"
#include "transport/failure.h"

namespace zbccl::transport {

struct Peer {
  std::shared_ptr<memory::PeerProcess> process;
  ControlBlock* block = nullptr;
  std::byte* outbox = nullptr;  // two halves of outbox_bytes
};

struct TeamOptions {
  int rank = 0;
  uint32_t epoch_base = 0;
  bool spin = true;         // every rank has a core
  size_t outbox_bytes = 0;  // of one half
  Milliseconds timeout{0};  // of a wait, unless the call gives its own
  std::string name;         // for messages
};

class Team {
 public:
  Team(TeamOptions options, std::vector<Peer> peers);

  int rank() const { return options_.rank; }
  int size() const { return static_cast<int>(peers_.size()); }
  const Peer& peer(int rank) const { return peers_[static_cast<size_t>(rank)]; }
  ControlBlock& own() const { return *peers_[static_cast<size_t>(options_.rank)].block; }
  bool spins() const { return options_.spin; }
  const std::string& name() const { return options_.name; }
  Milliseconds timeout() const { return options_.timeout; }
  // Of the operation that runs, for the thread that runs it.
  Milliseconds call_timeout() const { return call_timeout_; }

  // Every rank can reach every other's ordinary memory; agreed by all at init.
  bool attachable() const { return attachable_; }
  void set_attachable(bool value) { attachable_ = value; }

  // --- one operation: enter, then any number of phases ---

  // Shows what this rank calls and where its buffers are, waits for every rank, and compares. A
  // mismatch is kInvalidUsage on every rank, naming who called what; the team stays usable.
  // `timeout` zero: the team's. `tally`: see Packet.
  Status enter(const Signature& signature, const BufferRef& input, const BufferRef& output,
               Milliseconds timeout, uint64_t tally = 0);
  // This rank's rows for the operation to be entered next, one for each peer.
  BlockRow* next_rows() const { return own().rows(epoch() + 1, size()); }
  // What `rank` wrote about `peer` for the current operation.
  const BlockRow& row(int rank, int peer) const {
    return peers_[static_cast<size_t>(rank)].block->rows(epoch(), size())[peer];
  }
  // What this rank adds to its packet of the operation to be entered next.
  Annex& next_annex() const { return own().annexes[(epoch() + 1) & 1U]; }
  // What `rank` added to its packet of the current operation.
  const Annex& annex(int rank) const {
    return peers_[static_cast<size_t>(rank)].block->annexes[epoch() & 1U];
  }
  // The half of the outbox that the operation to be entered next may fill.
  std::byte* next_outbox() const {
    return own_outbox_ + ((epoch() + 1) & 1U) * options_.outbox_bytes;
  }
  // The half that `rank` filled for the current operation.
  const std::byte* outbox(int rank) const {
    return peers_[static_cast<size_t>(rank)].outbox + (epoch() & 1U) * options_.outbox_bytes;
  }
  size_t outbox_bytes() const { return options_.outbox_bytes; }
  const Packet& packet(int rank) const {
    return peers_[static_cast<size_t>(rank)].block->packets[epoch() & 1U];
  }
  // Says that this rank has finished the current phase.
  void signal();
  // Waits until every rank has. An error too if the team has failed by then: see confirm().
  Status wait();
  Status sync() {
    signal();
    return wait();
  }

  // --- faults ---

  // Makes every present and future wait here and on the peers end. The first failure stays.
  void fail(Failure failure);
  // Called after each fail(), on its thread; nullptr takes it back and waits for a running call.
  void on_failure(std::function<void()> hook) {
    const std::lock_guard lock(hook_mutex_);
    failure_hook_ = std::move(hook);
  }
  // For the rank on which something went wrong in the middle of an operation: fails the team and
  // returns `status`, or, where it is a peer's death that went wrong, the error that names the
  // peer.
  Status give_up(const Status& status);
  // For memory of `rank` that could not be mapped because of `status`: a rank that does not answer
  // in time is the one that failed.
  Status unreachable(int rank, const Status& status);
  // Tells the peers that this rank itself waits for `rank` (-1: no longer), for memory or a
  // message, so that they do not blame it.
  void set_blocked_on(int rank) {
    own().phase.blocked_on.store(rank + 1, std::memory_order_relaxed);
  }
  bool failed() const { return own().abort.word.load(std::memory_order_relaxed) != 0; }
  // After the last read of a peer's memory, before its result is called good: a rank that others
  // have given up on may have read what their memory was used for afterwards. They fail the team
  // before their calls return, so that whoever has read something newer sees the failure here.
  Status confirm() const {
    std::atomic_thread_fence(std::memory_order_acquire);
    return failed() ? failure_status() : Status();
  }
  // Which operation `rank` has entered last and whom it waits for, for messages.
  std::string whereabouts(int rank) const;
  // Whom to blame when `rank` does not come.
  int cause_of(int rank) const;
  Failure failure() const {
    return Failure::unpack(own().abort.word.load(std::memory_order_acquire));
  }
  // The error that calls return after failure().
  Status failure_status() const;
  // A peer process has ended: fails the team if a rank that has not left lived in it.
  void process_died(uint64_t nonce);
  bool has_left(int rank) const;
  // Keeps the pool block at `address` from being reused while a late peer may still write to it:
  // until every peer has left or died.
  void quarantine(const void* address) {
    const std::lock_guard lock(quarantine_mutex_);
    quarantine_.emplace_back(address);
  }
  std::vector<memory::Lease> take_quarantine() { return std::move(quarantine_); }

  // --- doorbells, for point-to-point traffic ---

  // Wakes whoever waits in `rank`. What it is to see must be stored before.
  void ring(int rank);
  // To sleep: read rings, look for work, then sleep on the value read.
  uint32_t doorbell_rings() const { return own().doorbell.rings.load(std::memory_order_acquire); }
  void sleep_on_doorbell(uint32_t seen, Milliseconds limit);

  uint32_t sequence() const { return epoch() - options_.epoch_base; }
  // Memory for pieces of peers' unmapped buffers; kept for the next call.
  std::byte* scratch(size_t bytes) {
    if (scratch_.size() < bytes) scratch_.resize(bytes);
    return scratch_.data();
  }
  uint64_t wait_nanoseconds() const { return wait_ns_.load(std::memory_order_relaxed); }
  // By whoever runs operations.
  void count_landing(uint64_t bytes) {
    landing_.add(bytes);
    observe::thread_traffic().landing.add(bytes);
  }
  // By any thread.
  void count_staged(uint64_t bytes) {
    staged_.fetch_add(bytes, std::memory_order_relaxed);
    observe::thread_traffic().staged.add(bytes);
  }
  uint64_t landing_bytes() const { return landing_.get(); }
  uint64_t staged_bytes() const { return staged_.load(std::memory_order_relaxed); }

 private:
  enum class Event { kEnter, kPhase };
  uint32_t epoch() const { return epoch_.load(std::memory_order_relaxed); }
  bool arrived(Event event, int rank) const;
  int first_missing(Event event) const;
  Status wait_all(Event event, Milliseconds timeout);
  Status wait_slow(Event event, Milliseconds timeout);
  void arrive();
  Status compare(const Signature& mine) const;
  Status disagreement() const;
  std::string describe_call(int rank) const;
  Status tally_error() const;
  Status time_out(Event event, Milliseconds timeout);
  int blocked_on(int rank) const;  // -1: nobody
  void wake_everyone();

  TeamOptions options_;
  std::vector<Peer> peers_;
  std::byte* own_outbox_ = nullptr;
  bool attachable_ = false;
  std::atomic<uint32_t> epoch_{0};  // advanced by the thread that runs operations; others may look
  uint32_t phase_ = 0;
  uint32_t signals_ = 0;  // enters and phases, for the arrival counters
  Milliseconds call_timeout_{0};
  std::atomic<uint64_t> wait_ns_{0};
  observe::Count landing_;
  std::atomic<uint64_t> staged_{0};
  std::vector<std::byte> scratch_;
  std::mutex hook_mutex_;
  std::function<void()> failure_hook_;
  std::mutex quarantine_mutex_;
  std::vector<memory::Lease> quarantine_;
};

// One step of waiting without a futex: yields, then naps, so that a late peer does not cost a core
// for long.
void back_off(Clock::duration waited);

}  // namespace zbccl::transport
