// What a rank shows its peers in one communicator: one block per rank, in that rank's pool, mapped
// by every peer.
//
// Memory order: every word below has one writer unless it says otherwise. A writer stores what it
// announces first and the epoch last, with release; a reader loads the epoch with acquire and then
// reads the rest. Epochs are 32-bit, grow by one per operation (or phase) and wrap; they are
// compared by signed difference.
//
// Two packets by parity: a rank enters operation e + 2 only after it has seen every packet e + 1,
// which each peer writes after it has finished operation e; so nobody reads packet e any more when
// it is overwritten. The same holds for the two halves of the outbox.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace zbccl::transport {

inline constexpr size_t kLine = 128;  // a pair of cache lines, which the prefetcher moves together

// Where a buffer lies, for any process: in the owner's registered segment, or at an address of the
// owner's process.
struct BufferRef {
  static constexpr uint32_t kAddress = 0xffffffff;
  uint32_t segment = kAddress;
  uint32_t reserved = 0;
  uint64_t offset = 0;
};

// What the call is; must be the same on every rank.
struct Signature {
  uint8_t operation = 0;
  uint8_t type = 0;
  uint8_t red_op = 0;
  uint8_t algorithm = 0;
  int32_t root = 0;
  uint64_t count = 0;   // of the forms with per-rank sizes: their sum where all ranks give the same
  uint64_t layout = 0;  // the same for equal per-rank sizes, where all ranks give the same
  bool operator==(const Signature&) const = default;
};

struct alignas(kLine) Packet {
  std::atomic<uint32_t> epoch;
  uint32_t reserved;
  Signature signature;
  BufferRef input;
  BufferRef output;
  // all_to_all_v: what this rank sends less what it expects, each size hashed with its two ranks.
  // Over all ranks it adds up to zero if every pair agrees.
  alignas(64) uint64_t tally;
};
static_assert(sizeof(Packet) == kLine);
static_assert(offsetof(Packet, tally) == 64, "all that every operation reads is one cache line");

// What a packet of all_reduce_rms_norm has no room for: its outputs, and, for messages, what its
// signature knows as one number.
struct alignas(kLine) Annex {
  static constexpr int kBuffers = 5;
  BufferRef buffers[kBuffers];
  uint64_t strides[2];  // of the scales, in elements
  float epsilon;
  float scale;
};
static_assert(sizeof(Annex) == kLine);

// Signature::red_op of all_reduce_rms_norm; the lowest two bits are the NormCodes.
enum NormFlag : uint8_t {
  kNormForm = 3,
  kNormResidual = 4,
  kNormResidualOut = 8,
  kNormOut = 16,
  kNormScales = 32,
  kNormExponents = 64,
  kNormOnePlusWeight = 128,
};

// One peer's block in the buffers of an operation with per-rank sizes.
struct BlockRow {
  uint64_t send_count = 0;   // elements
  uint64_t send_offset = 0;  // bytes from the input's beginning
  uint64_t recv_count = 0;   // elements
};

// The end of a phase within an operation.
struct alignas(kLine) PhaseFlag {
  std::atomic<uint32_t> phase;
  std::atomic<int32_t> blocked_on;  // the rank, plus 1, whose memory or message this rank waits for
};

// Why this rank's communicator cannot go on; 0 while it can. Written once, by whoever notices
// first: the rank itself, its service thread, or a peer that gives up.
struct alignas(kLine) AbortWord {
  std::atomic<uint64_t> word;
};

// Where sleepers of the whole communicator wait; the one in rank 0's block is used. Any rank
// writes.
struct alignas(kLine) Bell {
  std::atomic<uint32_t> rings;  // futex
  std::atomic<uint32_t> sleepers;
  std::atomic<uint32_t>
      arrivals[4];  // by signal number modulo 4: nobody is more than two signals ahead
};

// Where this rank's senders and receivers wait for a peer. Any rank rings.
struct alignas(kLine) Doorbell {
  std::atomic<uint32_t> rings;  // futex
  std::atomic<uint32_t> sleepers;
};

// A message offered to one peer; the sender writes it.
struct alignas(kLine) Offer {
  std::atomic<uint32_t> epoch;
  uint32_t type;
  uint64_t count;
  BufferRef buffer;
  uint32_t tag;
};

// The receiver's answer to the offer of the same epoch.
struct alignas(kLine) Answer {
  std::atomic<uint32_t> epoch;
  uint32_t accepted;  // 0: count or type differ
  uint64_t count;     // what the receiver asked for
  uint32_t type;
};

// Followed in memory by Offer[nranks], Answer[nranks], BlockRow[2][nranks] (by parity, as the
// packets), and a byte per rank that says "I have left" (written by that peer).
struct ControlBlock {
  AbortWord abort;
  Packet packets[2];
  Annex annexes[2];  // by parity, as the packets
  PhaseFlag phase;
  Bell bell;
  Doorbell doorbell;

  static size_t bytes(int nranks) {
    return sizeof(ControlBlock) +
           static_cast<size_t>(nranks) * (sizeof(Offer) + sizeof(Answer) + 2 * sizeof(BlockRow) +
                                          sizeof(std::atomic<uint8_t>));
  }
  Offer& offer(int to) { return reinterpret_cast<Offer*>(this + 1)[to]; }
  Answer& answer(int from, int nranks) {
    return reinterpret_cast<Answer*>(reinterpret_cast<Offer*>(this + 1) + nranks)[from];
  }
  BlockRow* rows(uint32_t epoch, int nranks) {
    return reinterpret_cast<BlockRow*>(&answer(0, nranks) + nranks) +
           static_cast<size_t>(epoch & 1U) * static_cast<size_t>(nranks);
  }
  std::atomic<uint8_t>& left(int rank, int nranks) {
    return reinterpret_cast<std::atomic<uint8_t>*>(rows(0, nranks) +
                                                   size_t{2} * static_cast<size_t>(nranks))[rank];
  }
};

// a reached b, wrap-around included.
inline bool reached(uint32_t seen, uint32_t wanted) {
  return static_cast<int32_t>(seen - wanted) >= 0;
}

}  // namespace zbccl::transport
