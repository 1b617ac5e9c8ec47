// What a route does with the counts of all ranks, in one block: tells them to everyone, and finds
// by prefix sums where each rank's rows begin. Nothing that an atomic returns decides a place.
#pragma once

#include "kernels/cuda/moe_board.cuh"
#include "kernels/cuda/moe_places.cuh"
#include "kernels/cuda/poison.cuh"

namespace zbccl::cuda {

__device__ __forceinline__ int32_t clamp_rows(int64_t rows) {
  return static_cast<int32_t>(min(max(rows, int64_t{0}), kMostTargetRows));
}

// Word `w` of this rank's to everyone; `total`: what its tokens have.
__device__ __forceinline__ void show_total(const TeamView& view, const RouteArgs& args,
                                           const Turn& turn, int w, int32_t total) {
  const int first_extra = args.moe.experts + view.nranks;
  if (w == first_extra + kWordCapacity) total = args.capacity;
  if (w == first_extra + kWordMask) total = static_cast<int32_t>(args.mask);
  for (int i = 1; i <= view.nranks; ++i) {
    const int r = (view.rank + i) % view.nranks;
    show_word(words_at(view, args.moe, turn, r, view.rank) + w, turn, static_cast<uint32_t>(total));
  }
}

// Leaves in chunk_counts what the chunks before have, and shows the sums to everyone.
__device__ __forceinline__ void show_counts(const TeamView& view, const RouteArgs& args,
                                            const Turn& turn, int chunks) {
  const int words = moe_words(args.moe.experts, view.nranks);
  for (int w = static_cast<int>(threadIdx.x); w < words; w += static_cast<int>(blockDim.x)) {
    int32_t* const column = args.moe.chunk_counts + w;
    int32_t here[kRouteBlocks];  // all loads before the first store
#pragma unroll
    for (int c = 0; c < kRouteBlocks; ++c) here[c] = c < chunks ? column[c * words] : 0;
    int32_t total = 0;
#pragma unroll
    for (int c = 0; c < kRouteBlocks; ++c) {
      if (c < chunks) column[c * words] = total;
      total += here[c];
    }
    show_total(view, args, turn, w, total);
  }
}

// The whole block; false if a rank has failed meanwhile.
__device__ __forceinline__ bool read_counts(const TeamView& view, const RouteArgs& args,
                                            const Turn& turn) {
  constexpr int kAtOnce = 8;
  const int words = moe_words(args.moe.experts, view.nranks);
  const int all = view.nranks * words;
  const int step = static_cast<int>(blockDim.x);
  const uint64_t* const board = words_at(view, args.moe, turn, view.rank, 0);
  Waiter waiter(view, turn.epoch);
  bool alive = true;
  for (int first = static_cast<int>(threadIdx.x); alive && first < all; first += kAtOnce * step) {
    uint64_t seen[kAtOnce];  // most are there already
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * step;
      seen[k] = i < all ? load_relaxed(board + i) : 0;
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * step;
      if (i >= all || !alive) break;
      auto value = static_cast<uint32_t>(seen[k] >> 32);
      if (static_cast<uint32_t>(seen[k]) != turn.epoch) {
        alive = await_word(waiter, turn, board + i, i / words, &value);
      }
      args.tables.words[i] = static_cast<int32_t>(value);
    }
  }
  return __syncthreads_and(alive) != 0;
}

// The table in shared hands: everyone's words, and what became of the whole.
struct Table {
  const TeamView& view;
  const RouteArgs& args;
  int words;

  __device__ __forceinline__ int32_t* of(int rank) const {
    return args.tables.words + static_cast<int64_t>(rank) * words;
  }
  __device__ __forceinline__ int32_t& to_rank(int from, int to) const {
    return of(from)[args.moe.experts + to];
  }
  __device__ __forceinline__ int32_t extra(int rank, int word) const {
    return of(rank)[args.moe.experts + view.nranks + word];
  }
  __device__ __forceinline__ bool apart(int a, int b) const {
    return ((static_cast<uint32_t>(extra(a, kWordMask)) >> b |
             static_cast<uint32_t>(extra(b, kWordMask)) >> a) &
            1) != 0;
  }
};

// Nothing goes between ranks of which one masks the other, and nothing at all if `all`.
__device__ __forceinline__ void clear_counts(const Table& table, bool all) {
  const int experts = table.args.moe.experts;
  const int nranks = table.view.nranks;
  bool masks = false;
#pragma unroll
  for (int s = 0; s < kMaxRanks; ++s) {
    if (s < nranks) masks = masks || table.extra(s, kWordMask) != 0;
  }
  if (!all && !masks) return;
  for (int i = static_cast<int>(threadIdx.x); i < nranks * experts;
       i += static_cast<int>(blockDim.x)) {
    const int source = i / experts;
    const int expert = i % experts;
    if (all || table.apart(source, table.args.moe.rank_of[expert])) {
      table.of(source)[expert] = 0;
    }
  }
  for (int i = static_cast<int>(threadIdx.x); i < nranks * nranks;
       i += static_cast<int>(blockDim.x)) {
    if (all || table.apart(i / nranks, i % nranks)) table.to_rank(i / nranks, i % nranks) = 0;
  }
  __syncthreads();
}

__device__ __forceinline__ int64_t sum_before(int64_t value, int lane) {
  int64_t sum = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t other = __shfl_up_sync(kWarp, sum, distance);
    if (lane >= distance) sum += other;
  }
  return sum - value;
}

// One warp: where the rows for the experts of `rank` are in its output.
__device__ __forceinline__ void place_experts(const Table& table, int rank, MoeTotals* totals,
                                              int32_t* failed) {
  const RouteArgs& args = table.args;
  const MoeView& moe = args.moe;
  const int me = table.view.rank;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool masked = args.layout == MoeLayout::kExpertMasked;
  const bool apart = table.apart(me, rank);  // this rank's slots are numbered, and go nowhere
  const int64_t capacity = table.extra(rank, kWordCapacity);
  const int first = moe.first_place[rank];
  const int count = moe.first_place[rank + 1] - first;
  int64_t at = 0;
  int64_t most = 0;
  int64_t all_kept = 0;
  for (int base = 0; base < count; base += 32) {
    const int local = base + lane;
    const bool has = local < count;
    const int expert = has ? moe.by_place[first + local] : 0;
    int64_t total = 0;
    int64_t before = 0;  // from the ranks before this one
    int32_t here[kMaxRanks];
#pragma unroll
    for (int s = 0; s < kMaxRanks; ++s) {
      here[s] = has && s < table.view.nranks ? table.of(s)[expert] : 0;
    }
#pragma unroll
    for (int s = 0; s < kMaxRanks; ++s) {
      total += here[s];
      if (s < me) before += here[s];
    }
    const int64_t room = (total + args.alignment - 1) / args.alignment * args.alignment;
    const int64_t offset = sum_before(room, lane);
    const int64_t start = masked ? local * capacity : at + offset;
    const int64_t limit = masked ? start + capacity : (capacity > 0 ? capacity : kMostTargetRows);
    at += __shfl_sync(kWarp, offset + room, 31);
    if (!has) continue;
    moe.starts[expert] = clamp_rows(start + before);
    moe.limits[expert] = apart ? 0 : clamp_rows(limit);
    most = max(most, total);
    const int64_t kept = min(max(limit - start, int64_t{0}), total);
    all_kept += kept;
    if (rank != me) continue;
    args.tables.expert_counts[local] = static_cast<int32_t>(kept);
    args.tables.expert_offsets[local] = clamp_rows(start);
    int64_t first_row = 0;
    for (int s = 0; args.recv_ranges != nullptr && s < table.view.nranks; ++s) {
      const int64_t count = table.of(s)[expert];
      const int64_t left = min(max(limit - start - first_row, int64_t{0}), count);
      args.recv_ranges[local * table.view.nranks + s] = first_row << 32 | left;
      first_row += count;
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    most = max(most, __shfl_xor_sync(kWarp, most, distance));
    all_kept += __shfl_xor_sync(kWarp, all_kept, distance);
  }
  if (lane != 0) return;
  const int64_t end = masked ? count * capacity : at;
  if (end > kMostTargetRows || most > kMostTargetRows) *failed = kTooManyRows | rank << 8;
  if (rank != me) return;
  args.tables.expert_offsets[count] = clamp_rows(end);
  const int64_t needed = masked ? most : at;
  totals->needed_capacity = clamp_rows(needed);
  totals->overflow = capacity > 0 && needed > capacity ? 1 : 0;
  totals->num_rows = clamp_rows(masked ? all_kept : (capacity > 0 ? min(at, capacity) : at));
}

// The same where a row stands for a token: one thread for each rank.
__device__ __forceinline__ void place_tokens(const Table& table, int rank, MoeTotals* totals,
                                             int32_t* failed) {
  const int64_t capacity = table.extra(rank, kWordCapacity);
  int64_t before = 0;
  int64_t total = 0;
#pragma unroll
  for (int s = 0; s < kMaxRanks; ++s) {
    if (s == table.view.rank) before = total;
    if (s < table.view.nranks) total += table.to_rank(s, rank);
  }
  table.args.moe.starts[rank] = clamp_rows(before);
  const int64_t limit = capacity > 0 ? capacity : kMostTargetRows;
  table.args.moe.limits[rank] = table.apart(table.view.rank, rank) ? 0 : clamp_rows(limit);
  if (total > kMostTargetRows) *failed = kTooManyRows | rank << 8;
  if (rank != table.view.rank) return;
  totals->needed_capacity = clamp_rows(total);
  totals->overflow = capacity > 0 && total > capacity ? 1 : 0;
  totals->num_rows = clamp_rows(capacity > 0 ? min(total, capacity) : total);
}

// How many slots name each local expert. RankMajor; the whole block.
__device__ __forceinline__ void count_experts(const Table& table) {
  const MoeView& moe = table.args.moe;
  const int first = moe.first_place[table.view.rank];
  const int count = moe.first_place[table.view.rank + 1] - first;
  for (int local = static_cast<int>(threadIdx.x); local < count;
       local += static_cast<int>(blockDim.x)) {
    int32_t total = 0;
    const int expert = moe.by_place[first + local];
#pragma unroll
    for (int s = 0; s < kMaxRanks; ++s) {
      if (s < table.view.nranks) total += table.of(s)[expert];
    }
    table.args.tables.expert_counts[local] = total;
  }
}

// What was wrong somewhere, the same on every rank: no row goes anywhere.
__device__ __forceinline__ void void_route(const Table& table, MoeTotals* totals, int32_t failed) {
  const MoeView& moe = table.args.moe;
  const bool by_expert = table.args.layout != MoeLayout::kRankMajor;
  const int limits = by_expert ? moe.experts : table.view.nranks;
  const int count = moe.first_place[table.view.rank + 1] - moe.first_place[table.view.rank];
  for (int i = static_cast<int>(threadIdx.x); i < limits; i += static_cast<int>(blockDim.x))
    moe.limits[i] = 0;
  for (int i = static_cast<int>(threadIdx.x); i <= count; i += static_cast<int>(blockDim.x)) {
    if (i < count) table.args.tables.expert_counts[i] = 0;
    if (by_expert) table.args.tables.expert_offsets[i] = 0;
  }
  for (int i = static_cast<int>(threadIdx.x);
       table.args.recv_ranges != nullptr && i < count * table.view.nranks;
       i += static_cast<int>(blockDim.x)) {
    table.args.recv_ranges[i] = 0;
  }
  if (threadIdx.x == 0) *totals = {0, 0, 0, failed};
  clear_counts(table, true);
}

__device__ __forceinline__ void tell_results(const Table& table, const MoeTotals& totals) {
  const RouteArgs& args = table.args;
  const MoeView& moe = args.moe;
  const int count = moe.first_place[table.view.rank + 1] - moe.first_place[table.view.rank];
  for (int i = static_cast<int>(threadIdx.x); args.recv_counts != nullptr && i < count;
       i += static_cast<int>(blockDim.x)) {
    args.recv_counts[i] = args.tables.expert_counts[i];
  }
  if (threadIdx.x == 0) {
    *args.tables.totals = totals;
    if (args.recv_status != nullptr) {
      args.recv_status[0] = totals.num_rows;
      args.recv_status[1] = totals.needed_capacity;
      args.recv_status[2] = totals.failed != 0 ? -1 : totals.overflow;
    }
  }
  if (args.host_done == nullptr) return;
  for (int i = static_cast<int>(threadIdx.x); i < table.view.nranks * table.words;
       i += static_cast<int>(blockDim.x)) {
    args.host_words[i] = args.tables.words[i];
  }
  if (threadIdx.x == 0) *args.host_totals = totals;
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) store_release(args.host_done, 1);
}

struct ExchangeShared {
  Entries entries;  // of exchange_counts()
  MoeTotals totals;
  int32_t failed;
};

// From everyone's counts to the tables, and to where this rank's rows begin. The whole block; false
// if a rank does not come.
__device__ __forceinline__ bool settle_counts(const TeamView& view, const RouteArgs& args,
                                              const Turn& turn, ExchangeShared* shared) {
  const int tid = static_cast<int>(threadIdx.x);
  if (tid == 0) {
    shared->failed = 0;
    shared->totals = {};
  }
  if (!read_counts(view, args, turn)) return false;
  const Table table = {view, args, moe_words(args.moe.experts, view.nranks)};
  if (tid < view.nranks && table.extra(tid, kWordWrong) != 0) {
    shared->failed = kWrongIndex | tid << 8;  // any of them, should there be several
  }
  __syncthreads();
  clear_counts(table, shared->failed != 0);
  if (args.layout != MoeLayout::kRankMajor) {
    for (int r = tid / 32; r < view.nranks; r += static_cast<int>(blockDim.x) / 32) {
      place_experts(table, r, &shared->totals, &shared->failed);
    }
  } else {
    if (tid < view.nranks) place_tokens(table, tid, &shared->totals, &shared->failed);
    count_experts(table);
  }
  __syncthreads();
  if (shared->failed != 0) void_route(table, &shared->totals, shared->failed);
  __syncthreads();
  tell_results(table, shared->totals);
  return true;
}

// The same from this rank's counts, in `chunks` chunks. False if the calls do not agree, too.
__device__ __forceinline__ bool exchange_counts(const TeamView& view, const RouteArgs& args,
                                                const Turn& turn, int chunks,
                                                ExchangeShared* shared) {
  send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
  show_counts(view, args, turn, chunks);
  clear_previous_slot(view, turn, threadIdx.x, blockDim.x);
  return check_entry(view, args.call, turn, &shared->entries) &&
         settle_counts(view, args, turn, shared);
}

}  // namespace zbccl::cuda
