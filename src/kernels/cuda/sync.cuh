// How blocks of different GPUs meet: the loads and stores that peers see, waits that end, the entry
// and the exit of an operation. Every kernel of a team runs
//
//   Turn turn = begin(view);            the epoch; false if the team has failed
//   send_entry / check_entry            what each rank calls; before any output is written
//   ...                                 data; every wait through Waiter
//   meet_at_exit                        only where peers read or write this rank's own buffers
//   end(view, turn, dirty)
//
// Memory order: flags are written with release.sys and read with acquire.sys where data stands
// behind them. Data that carries its own validity (poison) is read and written relaxed, word by
// word.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/numbers.h"
#include "kernels/cuda/team_view.h"

namespace zbccl::cuda {

// --- accesses that other GPUs take part in ---

__device__ __forceinline__ Pack load_volatile(const void* p) {
  Pack v;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(p)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_volatile(void* p, Pack v) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.w[0]),
               "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3])
               : "memory");
}
// Memory that nobody else writes meanwhile.
__device__ __forceinline__ Pack load_plain(const void* p) {
  Pack v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(p)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_plain(void* p, Pack v) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.w[0]), "r"(v.w[1]),
               "r"(v.w[2]), "r"(v.w[3])
               : "memory");
}
__device__ __forceinline__ uint64_t load_acquire(const uint64_t* p) {
  uint64_t v;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint64_t load_relaxed(const uint64_t* p) {
  uint64_t v;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_release(uint64_t* p, uint64_t v) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ __forceinline__ void store_release(uint32_t* p, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void store_relaxed(uint64_t* p, uint64_t v) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ __forceinline__ void store_relaxed(uint32_t* p, uint32_t v) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

// --- failures ---

enum Stage : uint32_t {
  kAtEntry = 0,
  kAtData,
  kAtStep,
  kAtCredit,
  kAtExit,
  kAtOffer,
  kAtArrival,
  kAtRecovery
};

inline constexpr uint32_t kReported = 0x80000000u;  // in Control::failed: the host has been told

// Of Control::failed: the ranks' calls did not agree, as this rank or a peer has found.
__device__ __forceinline__ bool is_mismatch(uint32_t failed) {
  const auto kind = static_cast<FailureKind>(failed & 0xff);
  const auto reported = static_cast<FailureKind>(failed >> 16 & 0xff);
  return kind == FailureKind::kMismatch ||
         (kind == FailureKind::kPeerFailed && reported == FailureKind::kMismatch);
}

static __device__ __noinline__ void tell_host(const TeamView& view, FailureKind kind, uint32_t rank,
                                              uint32_t stage, uint32_t epoch, uint64_t expected,
                                              uint64_t seen, uint32_t code, const uint32_t* mine,
                                              const uint32_t* theirs) {
  volatile FailureRecord* record = view.record;
  record->rank = rank;
  record->epoch = epoch;
  record->stage = stage;
  record->block = blockIdx.x;
  record->code = code & 0xff;
  record->culprit = code >> 8;
  record->expected = expected;
  record->seen = seen;
  const auto& entries = view.control[view.rank]->entries;
  const auto epoch_of = [&](uint32_t slot) {
    return static_cast<uint32_t>(load_relaxed(&entries[slot][rank][0]));
  };
  const uint32_t last = static_cast<int32_t>(epoch_of(0) - epoch_of(1)) > 0 ? 0 : 1;
  record->last = epoch_of(last);
  for (int w = 0; w < kEntryWords; ++w) {
    // Ranks enter operations before themselves, too.
    const uint64_t entered = entries[epoch & 1][view.rank][w];
    const uint64_t called = load_relaxed(&entries[last][rank][w]);
    record->mine[w] = mine != nullptr ? mine[w] : static_cast<uint32_t>(entered >> 32);
    record->theirs[w] = theirs != nullptr ? theirs[w] : static_cast<uint32_t>(called >> 32);
  }
  __threadfence_system();
  record->kind = static_cast<uint32_t>(kind);
  __threadfence_system();
}

// True if the team has failed; a peer's word is passed on to the host once.
static __device__ __noinline__ bool has_failed(const TeamView& view, uint32_t epoch) {
  uint32_t* const word = &view.control[view.rank]->failed;
  const uint32_t seen = load_relaxed(word);
  if (seen == 0) return false;
  if ((seen & kReported) == 0 && atomicCAS_system(word, seen, seen | kReported) == seen) {
    tell_host(view, FailureKind::kPeerFailed, (seen >> 8 & 0xff) - 1, kAtEntry, epoch, 0, 0,
              (seen >> 16 & 0xff) | (seen >> 24 & 0x7f) << 8, nullptr, nullptr);
  }
  return true;
}

// The first failure of this rank: the host and the peers are told, and every wait ends.
static __device__ __noinline__ void fail(const TeamView& view, FailureKind kind, uint32_t rank,
                                         uint32_t stage, uint32_t epoch, uint64_t expected,
                                         uint64_t seen, const uint32_t* mine = nullptr,
                                         const uint32_t* theirs = nullptr) {
  uint32_t* const failed = &view.control[view.rank]->failed;
  const uint32_t word = static_cast<uint32_t>(kind) | (rank + 1) << 8 | kReported;
  const uint32_t before = atomicCAS_system(failed, 0u, word);
  if (before != 0) {
    // A peer was faster. Of calls that differ each rank has the whole story itself; of anything
    // else the peer, and this kernel may be the last one to pass its word on.
    const bool takes_over = kind == FailureKind::kMismatch && is_mismatch(before) &&
                            (before & kReported) == 0 &&
                            atomicCAS_system(failed, before, word) == before;
    if (!takes_over) {
      (void)has_failed(view, epoch);
      return;
    }
  }
  tell_host(view, kind, rank, stage, epoch, expected, seen, 0, mine, theirs);
  const uint32_t to_peers = static_cast<uint32_t>(FailureKind::kPeerFailed) |
                            static_cast<uint32_t>(view.rank + 1) << 8 |
                            static_cast<uint32_t>(kind) << 16 | (rank + 1) << 24;
  for (int r = 0; r < view.nranks; ++r) {
    if (r != view.rank) atomicCAS_system(&view.control[r]->failed, 0u, to_peers);
  }
}

// Whose turn it is to look at the host's word. Loads of one line of host memory follow one another,
// some microsecond each: if every warp that waits made one, the last would be late by hundreds, and
// then its peers, who look while they wait for it, too. What one has seen fail() tells all others.
static __device__ __forceinline__ bool asks_host(uint64_t now) {
  constexpr uint32_t kTurns = 128;     // 8 ms in all
  constexpr uint32_t kTurnShift = 16;  // of 65,536 ns each, in which a waiting thread looks once
  constexpr uint32_t kApart = 37;      // the warps of a block
  const uint32_t warp = blockIdx.x + kApart * (threadIdx.x / 32);
  return (static_cast<uint32_t>(now >> kTurnShift) + warp) % kTurns == 0;
}

// Looks whether a wait is to be given up: after a failure, at the host's word, at the deadline.
// Returns when the wait began, or 0 to give up. By value, so that waits stay in registers.
static __device__ __noinline__ uint64_t look_around(const TeamView& view, uint64_t begin,
                                                    uint32_t epoch, uint32_t rank, uint32_t stage,
                                                    uint64_t expected, uint64_t seen) {
  if (has_failed(view, epoch)) return 0;
  const uint64_t now = nanoseconds();
  if (asks_host(now) && *view.abort != 0) {
    fail(view, FailureKind::kAborted, rank, stage, epoch, expected, seen);
    return 0;
  }
  if (begin == 0) begin = now;
  if (now - begin < view.timeout_ns) return begin;
  fail(view, FailureKind::kTimeout, rank, stage, epoch, expected, seen);
  return 0;
}

// A wait of one thread that ends: by what it waits for, or by one of those, which are looked at now
// and then.
class Waiter {
 public:
  __device__ __forceinline__ Waiter(const TeamView& view, uint32_t epoch)
      : view_(view), epoch_(epoch) {}
  // After each look that found nothing. False: give up.
  __device__ __forceinline__ bool again(uint32_t rank, Stage stage, uint64_t expected,
                                        uint64_t seen) {
    return !is_due() || look_around(rank, stage, expected, seen);
  }
  // again() in two parts, for those who find out only then whom they wait for.
  __device__ __forceinline__ bool is_due() {
    if (++spins_ >= kEagerLooks && view_.nap_ns != 0) __nanosleep(view_.nap_ns);
    return (spins_ & 127u) == 0;
  }
  __device__ __forceinline__ bool look_around(uint32_t rank, Stage stage, uint64_t expected,
                                              uint64_t seen) {
    begin_ = cuda::look_around(view_, begin_, epoch_, rank, stage, expected, seen);
    return begin_ != 0;
  }

 private:
  static constexpr uint32_t kEagerLooks = 16;

  const TeamView& view_;
  uint64_t begin_ = 0;
  uint32_t epoch_;
  uint32_t spins_ = 0;
};

// --- the frame of an operation ---

struct Turn {
  uint32_t epoch = 0;
  uint32_t slot = 0;   // of the poison memory, for this operation
  uint32_t dirty = 0;  // packs that the operation before left in its slot
  bool ok = false;
};

// The launch of the next kernel of the stream may be prepared meanwhile; what the one before has
// written is there after this. In two parts, so that loads of the caller's can be under way between
// them.
struct Beginning {
  Pack progress;
  uint32_t failed;
};

__device__ __forceinline__ Beginning wait_to_begin(const TeamView& view) {
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  Control* const own = view.control[view.rank];
  Beginning beginning;
  beginning.progress = load_plain(&own->progress[blockIdx.x]);
  beginning.failed = load_relaxed(&own->failed);
  return beginning;
}

__device__ __forceinline__ Turn begin(const TeamView& view, const Beginning& beginning) {
  Turn turn;
  turn.epoch = beginning.progress.w[0] + 1;
  turn.dirty = beginning.progress.w[1];
  turn.slot = beginning.progress.w[2];
  turn.ok = beginning.failed == 0;
  if (!turn.ok && threadIdx.x == 0) (void)has_failed(view, turn.epoch);
  return turn;
}

__device__ __forceinline__ Turn begin(const TeamView& view) {
  return begin(view, wait_to_begin(view));
}

// Every block writes the copies of all blocks that have its number modulo the grid, so each copy is
// advanced exactly once by every operation, whatever its grid. After a barrier of the block.
__device__ __forceinline__ void end(const TeamView& view, const Turn& turn, uint32_t dirty) {
  const uint32_t block = blockIdx.x + threadIdx.x * gridDim.x;
  if (block >= kMaxBlocks) return;
  *reinterpret_cast<uint4*>(&view.control[view.rank]->progress[block]) =
      make_uint4(turn.epoch, dirty, (turn.slot + 1) % kPoisonSlots, 0);
}

// By threads 0 to 8 x nranks - 1 of one block, or others that take their numbers. Relaxed: what
// this rank's earlier kernels wrote was performed when they ended, in the memory that peers read.
__device__ __forceinline__ void send_entry(const TeamView& view, const EntryCall& call,
                                           const Turn& turn, int thread) {
  const int peer = thread / kEntryWords;
  const int word = thread % kEntryWords;
  if (peer >= view.nranks) return;
  const uint64_t value = reinterpret_cast<const uint32_t*>(&call.entry[peer])[word];
  store_relaxed(&view.control[peer]->entries[turn.epoch & 1][view.rank][word],
                value << 32 | turn.epoch);
}

// What check_entry() finds out, in shared memory.
struct Entries {
  uint32_t words[kMaxRanks][kEntryWords];
  const char* in[kMaxRanks];
  char* out[kMaxRanks];
};

static __device__ __noinline__ void report_mismatch(const TeamView& view, const EntryCall& call,
                                                    const Turn& turn, const Entries& entries) {
  for (int r = 0; r < view.nranks; ++r) {
    const auto* const mine = reinterpret_cast<const uint32_t*>(&call.entry[r]);
    const uint32_t* const theirs = entries.words[r];
    const uint64_t count = static_cast<uint64_t>(theirs[3]) << 32 | theirs[2];
    if (theirs[0] == mine[0] && theirs[1] == mine[1] && count == call.expected[r]) continue;
    fail(view, FailureKind::kMismatch, static_cast<uint32_t>(r), kAtEntry, turn.epoch,
         call.expected[r], count, mine, theirs);
    return;
  }
}

// `peer` calls something else: what, once all of it is there.
static __device__ __noinline__ void report_difference(const TeamView& view, const EntryCall& call,
                                                      uint32_t epoch, int peer) {
  const uint64_t* const row = view.control[view.rank]->entries[epoch & 1][peer];
  uint32_t theirs[kEntryWords];
  Waiter waiter(view, epoch);
  for (int word = 0; word < kEntryWords; ++word) {
    uint64_t seen;
    while (static_cast<uint32_t>(seen = load_relaxed(row + word)) != epoch) {
      if (!waiter.again(static_cast<uint32_t>(peer), kAtEntry, epoch,
                        static_cast<uint32_t>(seen))) {
        return;
      }
    }
    theirs[word] = static_cast<uint32_t>(seen >> 32);
  }
  const uint64_t count = static_cast<uint64_t>(theirs[3]) << 32 | theirs[2];
  fail(view, FailureKind::kMismatch, static_cast<uint32_t>(peer), kAtEntry, epoch,
       call.expected[peer], count, reinterpret_cast<const uint32_t*>(&call.entry[peer]), theirs);
}

// Thread `thread` of 8 x nranks: waits for its word of a rank's entry and compares it with this
// rank's own. 0 if they agree, 1 if not, 2 if the rank does not come. `kReads`: inputs of peers are
// read afterwards.
template <bool kReads = true>
__device__ __forceinline__ int watch_entry(const TeamView& view, const EntryCall& call,
                                           const Turn& turn, Entries* entries, int thread) {
  const int peer = thread / kEntryWords;
  const int word = thread % kEntryWords;
  if (peer >= view.nranks) return 0;
  const uint64_t* const from = &view.control[view.rank]->entries[turn.epoch & 1][peer][word];
  Waiter waiter(view, turn.epoch);
  uint64_t seen;
  for (;;) {
    // Acquire: an input that the entry shows is there.
    seen = kReads ? load_acquire(from) : load_relaxed(from);
    if (static_cast<uint32_t>(seen) == turn.epoch) break;
    if (!waiter.again(static_cast<uint32_t>(peer), kAtEntry, turn.epoch,
                      static_cast<uint32_t>(seen))) {
      return 2;
    }
  }
  const auto value = static_cast<uint32_t>(seen >> 32);
  entries->words[peer][word] = value;
  uint32_t expected = value;
  if (word < 2) expected = reinterpret_cast<const uint32_t*>(&call.entry[peer])[word];
  if (word == 2) expected = static_cast<uint32_t>(call.expected[peer]);
  if (word == 3) expected = static_cast<uint32_t>(call.expected[peer] >> 32);
  return value == expected ? 0 : 1;
}

// What the threads of a block have found, together. A barrier of the whole block.
__device__ __forceinline__ bool agree(const TeamView& view, const EntryCall& call, const Turn& turn,
                                      const Entries& entries, int wrong) {
  if (__syncthreads_or(wrong) == 0) return true;
  const int missing = __syncthreads_or(wrong == 2);
  if (missing == 0 && threadIdx.x == 0) report_mismatch(view, call, turn, entries);
  return false;
}

// Waits for every rank's entry. The whole block. False if the calls do not agree or a rank does not
// come.
__device__ __forceinline__ bool check_entry(const TeamView& view, const EntryCall& call,
                                            const Turn& turn, Entries* entries) {
  const int wrong = watch_entry(view, call, turn, entries, static_cast<int>(threadIdx.x));
  return agree(view, call, turn, *entries, wrong);
}

// After check_entry(). Ranks that each know only their own sizes show what they send less what they
// expect, as a hash in the place of an input (all_to_all_v); the hashes of all add up to zero where
// every pair agrees. False: some pair does not, and says so itself.
__device__ __forceinline__ bool tallies_agree(const TeamView& view, const Entries& entries) {
  uint64_t sum = 0;
  for (int r = 0; r < view.nranks; ++r) {
    sum += static_cast<uint64_t>(entries.words[r][4]) << 32 | entries.words[r][5];
  }
  return sum << 16 == 0;
}

// Where latency counts, the last warps of a block watch the entries while the others move data.
struct Crew {
  int thread;   // among those of its kind
  int workers;  // threads of a block that move data
  bool works;
  uint32_t first;   // of the workers of the grid
  uint32_t stride;  // all of them

  __device__ __forceinline__ explicit Crew(int nranks)
      : workers(static_cast<int>(blockDim.x) - watchers(nranks)),
        works(static_cast<int>(threadIdx.x) < workers) {
    thread = static_cast<int>(threadIdx.x) - (works ? 0 : workers);
    first = blockIdx.x * static_cast<uint32_t>(workers) + threadIdx.x;
    stride = gridDim.x * static_cast<uint32_t>(workers);
  }
};

__device__ __forceinline__ uint64_t segment_base(const TeamView& view, int rank, uint32_t segment) {
  const uint64_t base = load_relaxed(&view.segments[rank][segment]);
  return base != 0 ? base : load_relaxed(&view.fresh_segments[rank][segment]);
}

// Where the peers' buffers are as this GPU reaches them. After check_entry(); the whole block.
__device__ __forceinline__ void find_buffers(const TeamView& view, Entries* entries) {
  const int r = static_cast<int>(threadIdx.x);
  if (r < view.nranks) {
    const uint32_t* const words = entries->words[r];
    const auto resolve = [&](uint32_t high, uint32_t low) -> uint64_t {
      if (high >> 16 == kNoSegment) return 0;
      return segment_base(view, r, high >> 16) + (static_cast<uint64_t>(high & 0xffff) << 32 | low);
    };
    entries->in[r] = reinterpret_cast<const char*>(resolve(words[4], words[5]));
    entries->out[r] = reinterpret_cast<char*>(resolve(words[6], words[7]));
  }
  __syncthreads();
}

// Waits until the word that rank `r` keeps for this block has come to `step` of this operation.
__device__ __forceinline__ bool await_step(Waiter& waiter, const uint64_t* word, uint64_t wanted,
                                           int r, Stage stage) {
  for (;;) {
    const uint64_t seen = load_acquire(word);
    if (static_cast<int64_t>(seen - wanted) >= 0) return true;
    if (!waiter.again(static_cast<uint32_t>(r), stage, wanted, seen)) return false;
  }
}

// Tells the same block of every rank that this one has done its part. The whole block.
__device__ __forceinline__ void leave(const TeamView& view, const Turn& turn) {
  __syncthreads();
  const int r = static_cast<int>(threadIdx.x);
  if (r < view.nranks && r != view.rank) {
    store_release(&view.control[r]->exits[blockIdx.x][view.rank], turn.epoch);
  }
}
// Returns once that block of every rank has left.
__device__ __forceinline__ void await_leaving(const TeamView& view, const Turn& turn) {
  const int r = static_cast<int>(threadIdx.x);
  if (r < view.nranks && r != view.rank) {
    const uint32_t* const from = &view.control[view.rank]->exits[blockIdx.x][r];
    Waiter waiter(view, turn.epoch);
    for (;;) {
      const uint32_t seen = load_acquire(from);
      if (static_cast<int32_t>(seen - turn.epoch) >= 0) break;
      if (!waiter.again(static_cast<uint32_t>(r), kAtExit, turn.epoch, seen)) break;
    }
  }
  __syncthreads();
}

// Returns once the same block of every rank has come here: nobody reads or writes this rank's
// buffers on its behalf any more, and what the peers' blocks have written is visible. The whole
// block.
__device__ __forceinline__ void meet_at_exit(const TeamView& view, const Turn& turn) {
  leave(view, turn);
  await_leaving(view, turn);
}

// --- buffers of any size and alignment ---

// `bytes` bytes at `data` as packs, the last one possibly not whole.
struct Span {
  char* data;
  uint64_t bytes;
  bool aligned;

  __device__ __forceinline__ Span(char* at, uint64_t size)
      : data(at), bytes(size), aligned((reinterpret_cast<uint64_t>(at) & (kPackBytes - 1)) == 0) {}

  __device__ __forceinline__ uint64_t packs() const {
    return (bytes + kPackBytes - 1) / kPackBytes;
  }
  // Pack `i`; bytes beyond the end are 0.
  __device__ __forceinline__ Pack load(uint64_t i) const {
    const uint64_t at = i * kPackBytes;
    if (aligned && at + kPackBytes <= bytes) return load_plain(data + at);
    return load_ragged(data + at, bytes - at);
  }
  __device__ __forceinline__ void store(uint64_t i, Pack v) const {
    const uint64_t at = i * kPackBytes;
    if (aligned && at + kPackBytes <= bytes) {
      store_plain(data + at, v);
    } else {
      store_ragged(data + at, bytes - at, v);
    }
  }

 private:
  static __device__ __noinline__ Pack load_ragged(const char* at, uint64_t left) {
    Pack v{};
    auto* const to = reinterpret_cast<unsigned char*>(&v);
    const int n = left < kPackBytes ? static_cast<int>(left) : kPackBytes;
    for (int i = 0; i < n; ++i) to[i] = static_cast<unsigned char>(at[i]);
    return v;
  }
  static __device__ __noinline__ void store_ragged(char* at, uint64_t left, Pack v) {
    const auto* const from = reinterpret_cast<const unsigned char*>(&v);
    const int n = left < kPackBytes ? static_cast<int>(left) : kPackBytes;
    for (int i = 0; i < n; ++i) at[i] = static_cast<char>(from[i]);
  }
};

}  // namespace zbccl::cuda
