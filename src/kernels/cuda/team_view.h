// What kernels and the host agree on about a team of GPUs: where its arenas are, what lies in them,
// and what a rank tells its peers when it enters an operation. Plain data; no CUDA types.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zbccl::cuda {

inline constexpr int kMaxRanks = 16;
inline constexpr int kMaxBlocks = 128;  // of a grid: every block of every rank must be resident
inline constexpr int kEntryWords = 8;
inline constexpr int kPlaceWords = 10;  // of up to five outputs
inline constexpr int kRecoveryWords = 3;
inline constexpr int kPackBytes = 16;
inline constexpr int kPoisonSlots = 3;
inline constexpr int kTransferBlocks = 16;  // that send one message, at most

// What a rank shows one peer when it enters an operation, as words of 32 bits. On the wire each
// travels in 8 bytes beside the operation's epoch, so it carries its own validity.
struct Entry {
  uint32_t operation;  // operation | type << 8 | operator << 16 | algorithm << 24
  uint32_t shape;      // root | blocks << 16
  uint32_t count_low;  // bytes: what all agree on, or what this rank sends that peer
  uint32_t count_high;
  uint32_t in_high;  // segment << 16 | offset >> 32, where the peer finds this rank's input
  uint32_t in_low;
  uint32_t out_high;  // where the peer's data belongs in this rank's output
  uint32_t out_low;
};
static_assert(sizeof(Entry) == kEntryWords * sizeof(uint32_t));

// Segment and offset of a buffer, as two words of an entry.
inline constexpr uint32_t kNoSegment = 0xffff;
struct Place {
  uint32_t high = kNoSegment << 16;
  uint32_t low = 0;
};
inline Place make_place(uint32_t segment, uint64_t offset) {
  return {segment << 16 | static_cast<uint32_t>(offset >> 32), static_cast<uint32_t>(offset)};
}

// The part of an arena that is of fixed size. Zeroed when it is made; landing memory follows.
// Written by peers: entries, flags, failed. Everything else is the owner's.
struct Control {
  // By parity of the epoch, rank: word << 32 | epoch. A peer is at most one operation ahead,
  // because every operation waits for every rank's entry.
  uint64_t entries[2][kMaxRanks][kEntryWords];
  // The same of the outputs of an operation that has more than one.
  uint64_t places[2][kMaxRanks][kPlaceWords];
  // Last epoch whose data (exits) or step (steps, credits: epoch << 32 | step) the same block of a
  // rank has finished.
  uint32_t exits[kMaxBlocks][kMaxRanks];
  uint64_t steps[kMaxBlocks][kMaxRanks];
  uint64_t credits[kMaxBlocks][kMaxRanks];
  // Point to point. By receiver: where its buffer is, word << 32 | number of the message. By sender
  // and its block: blocks << 32 | number of the message whose part has arrived.
  uint64_t offers[kMaxRanks][kEntryWords];
  uint64_t arrivals[kMaxRanks][kTransferBlocks];
  // Back into use after calls that did not agree (recover.cu), by rank: word << 32 | generation.
  // Its last epoch; the number of its last message; that its landing memory is empty.
  uint64_t recoveries[kMaxRanks][kRecoveryWords];
  // Not zero: this team has failed; kernels that see it return at once. FailureKind |
  // (reporter + 1) << 8, and what a peer has reported: its kind << 16 | (culprit + 1) << 24. The
  // highest bit: the host has been told.
  uint32_t failed;
  uint32_t generation;  // how often it has been taken back into use
  uint32_t reserved[2];
  // The state that goes from one operation to the next, one copy for each block, so that no block
  // waits for another of its grid: the last epoch, how many packs of its poison slot it used, and
  // the slot of the next. (The epoch modulo three would repeat itself where it wraps.)
  struct alignas(16) Progress {
    uint32_t epoch;
    uint32_t dirty;
    uint32_t slot;
    uint32_t reserved;
  } progress[kMaxBlocks];
  // Messages so far to and from each rank, one copy for each block.
  uint32_t sent[kMaxBlocks][kMaxRanks];
  uint32_t received[kMaxBlocks][kMaxRanks];
};

// Landing memory behind the control part.
struct ArenaShape {
  size_t poison_offset = 0;  // three slots in turn, all poison until they are written
  size_t slot_bytes = 0;
  size_t inline_offset = 0;  // small blocks beside their epochs, by parity and rank
  size_t inline_bytes = 0;   // of one rank and parity
  size_t tiles_offset = 0;   // of chunked reductions
  size_t tiles_bytes = 0;
  size_t total = 0;
};

enum class FailureKind : uint32_t { kNone = 0, kMismatch, kTimeout, kAborted, kPeerFailed };

// In host memory that the GPU writes: the first failure of this rank's kernels. `kind` last.
struct FailureRecord {
  uint32_t kind;
  uint32_t rank;  // the peer that did not come, called something else, or failed first
  uint32_t epoch;
  uint32_t stage;  // what was waited for: Stage in sync.cuh
  uint32_t block;
  uint32_t code;     // of kPeerFailed: the peer's failure kind
  uint32_t culprit;  // of kPeerFailed: whom the peer blames, + 1
  uint32_t last;     // the epoch that the peer has entered last
  uint64_t expected;
  uint64_t seen;
  uint32_t mine[kEntryWords];    // what this rank calls
  uint32_t theirs[kEntryWords];  // what the peer calls; of one that does not come, its last call
};

// One rank's view of its team; travels as a kernel parameter.
struct TeamView {
  // What every kernel needs before its first store stands first.
  int32_t rank = 0;
  int32_t nranks = 0;
  ArenaShape shape;
  Control* control[kMaxRanks] = {};  // everyone's arena, as reached from this GPU
  // Bases of everyone's segments, as reached from here: on this GPU, and in host memory for those
  // that have not come to the GPU yet (0 there).
  const uint64_t* segments[kMaxRanks] = {};
  const uint64_t* fresh_segments[kMaxRanks] = {};
  FailureRecord* record = nullptr;           // host memory
  const volatile uint32_t* abort = nullptr;  // host memory; not zero: give up
  uint64_t timeout_ns = 0;                   // of one wait
  uint32_t nap_ns = 0;                       // between looks, once a wait has become long; 0: none
};

}  // namespace zbccl::cuda
