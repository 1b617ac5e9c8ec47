// The boards of a moe object: where ranks show each other notices and counts, each word beside the
// epoch of the operation that it belongs to, so that it needs no flag. By parity of the epoch: a
// rank writes for operation e + 2 only after it has seen every entry of e + 1, which each peer
// sends after it has finished e.
#pragma once

#include "kernels/cuda/moe.h"
#include "kernels/cuda/sync.cuh"

namespace zbccl::cuda {

// The notice of `source` on `rank`'s board.
__device__ __forceinline__ uint64_t* notice_at(const MoeView& moe, const Turn& turn, int rank,
                                               int source) {
  return moe.board[rank] + ((turn.epoch & 1) * kMaxRanks + source) * kNoticeWords;
}

__device__ __forceinline__ uint64_t* words_at(const TeamView& view, const MoeView& moe,
                                              const Turn& turn, int rank, int source) {
  const int words = moe_words(moe.experts, view.nranks);
  return moe.board[rank] + 2 * kMaxRanks * kNoticeWords +
         (static_cast<int64_t>(turn.epoch & 1) * view.nranks + source) * words;
}

__device__ __forceinline__ void show_word(uint64_t* at, const Turn& turn, uint32_t value) {
  store_relaxed(at, static_cast<uint64_t>(value) << 32 | turn.epoch);
}

// False if the wait was given up.
__device__ __forceinline__ bool await_word(Waiter& waiter, const Turn& turn, const uint64_t* at,
                                           int rank, uint32_t* value) {
  for (;;) {
    const uint64_t seen = load_relaxed(at);
    *value = static_cast<uint32_t>(seen >> 32);
    if (static_cast<uint32_t>(seen) == turn.epoch) return true;
    if (!waiter.again(static_cast<uint32_t>(rank), kAtEntry, turn.epoch,
                      static_cast<uint32_t>(seen))) {
      return false;
    }
  }
}

// To every rank, by the threads of one block.
__device__ __forceinline__ void send_notice(const TeamView& view, const MoeView& moe,
                                            const Turn& turn, const MoeNotes& notes) {
  const int all = view.nranks * kNoticeWords;
  for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
    const int word = i % kNoticeWords;
    show_word(notice_at(moe, turn, i / kNoticeWords, view.rank) + word, turn, notes.word[word]);
  }
}

// Everyone's, in shared memory. The whole block; false if a rank has failed meanwhile.
__device__ __forceinline__ bool await_notices(const TeamView& view, const MoeView& moe,
                                              const Turn& turn, MoeNotes* notes) {
  Waiter waiter(view, turn.epoch);
  bool alive = true;
  const int all = view.nranks * kNoticeWords;
  for (int i = static_cast<int>(threadIdx.x); alive && i < all; i += static_cast<int>(blockDim.x)) {
    const int rank = i / kNoticeWords;
    const int word = i % kNoticeWords;
    alive = await_word(waiter, turn, notice_at(moe, turn, view.rank, rank) + word, rank,
                       &notes[rank].word[word]);
  }
  return __syncthreads_and(alive) != 0;
}

__device__ __forceinline__ char* resolve(const TeamView& view, int rank, uint32_t high,
                                         uint32_t low) {
  if (high >> 16 == kNoSegment) return nullptr;
  return reinterpret_cast<char*>(segment_base(view, rank, high >> 16) +
                                 (static_cast<uint64_t>(high & 0xffff) << 32 | low));
}
__device__ __forceinline__ char* noticed_array(const TeamView& view, const MoeNotes& notes,
                                               int rank, int place) {
  return resolve(view, rank, notes.word[kNoticePlaces + 2 * place],
                 notes.word[kNoticePlaces + 2 * place + 1]);
}
__device__ __forceinline__ int64_t noticed_long(const MoeNotes& notes, int word) {
  return static_cast<int64_t>(static_cast<uint64_t>(notes.word[word]) << 32 | notes.word[word + 1]);
}

// A rank that somebody's wish for weights cannot be met by, with its kNeedsWeights but not
// kGivesWeights; -1 if all is well. Every rank finds the same.
__device__ __forceinline__ int lacking_weights(const TeamView& view, const MoeNotes* notes) {
  bool wanted = false;
  int lacks = -1;
  for (int r = 0; r < view.nranks; ++r) {
    const uint32_t flags = notes[r].word[kNoticeFlags];
    wanted = wanted || (flags & kWantsWeights) != 0;
    if ((flags & (kGivesWeights | kNeedsWeights)) == kNeedsWeights) lacks = r;
  }
  return wanted ? lacks : -1;
}

// The kernel in front of this one on the stream is over, with all that it wrote.
__device__ __forceinline__ void await_predecessor() {
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

}  // namespace zbccl::cuda
