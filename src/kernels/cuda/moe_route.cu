// Route: how many rows go where, told to everyone, and from that the place of every row. Three
// kernels, since a count is known only when all tokens have been looked at:
//
//   count     up to 16 blocks, a chunk of tokens each: slots for each expert, tokens for each rank
//   exchange  one block: the entry; eight bytes for each expert, rank and peer over the link; the
//             table of all ranks; by prefix sums where each rank's rows begin
//   place     as count: the place of each row, in the order of tokens and slots
//
// Nothing that an atomic returns decides a place.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_board.cuh"
#include "kernels/cuda/poison.cuh"

namespace zbccl::cuda {
namespace {

constexpr uint32_t kWarp = 0xFFFFFFFFU;
constexpr int kExchangeThreads = 1024;

struct Tokens {
  int begin;
  int end;
};

// Those of this warp; in the order of blocks and warps they are in the order of tokens.
__device__ __forceinline__ Tokens tokens_of_warp(const RouteArgs& args) {
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int parts = static_cast<int>(gridDim.x) * warps;
  const int each = (args.tokens + parts - 1) / parts;
  const int64_t part = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
  const int64_t begin = part * each;
  return {static_cast<int>(min(begin, static_cast<int64_t>(args.tokens))),
          static_cast<int>(min(begin + each, static_cast<int64_t>(args.tokens)))};
}

// -1: none. `wrong` is set for a number that is no expert.
__device__ __forceinline__ int expert_at(const RouteArgs& args, int64_t slot, bool* wrong) {
  const int64_t expert = args.wide ? static_cast<const int64_t*>(args.topk_idx)[slot]
                                   : static_cast<const int32_t*>(args.topk_idx)[slot];
  if (expert >= -1 && expert < args.moe.experts) return static_cast<int>(expert);
  *wrong = true;
  return -1;
}

// Bits of the ranks that hold one of the token's experts.
__device__ __forceinline__ uint32_t ranks_of(const RouteArgs& args, int token) {
  uint32_t ranks = 0;
  bool wrong = false;
  for (int k = 0; k < args.topk; ++k) {
    const int expert = expert_at(args, static_cast<int64_t>(token) * args.topk + k, &wrong);
    if (expert >= 0) ranks |= 1U << args.moe.rank_of[expert];
  }
  return ranks;
}

// --- count ---

__global__ void __launch_bounds__(256)
    count(const __grid_constant__ RouteArgs args, const int32_t nranks) {
  extern __shared__ int32_t counts[];  // moe_words
  await_predecessor();
  const int experts = args.moe.experts;
  const int words = moe_words(experts, nranks);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int w = static_cast<int>(threadIdx.x); w < words; w += static_cast<int>(blockDim.x)) {
    counts[w] = 0;
  }
  __syncthreads();
  const Tokens mine = tokens_of_warp(args);
  bool wrong = false;
  const int64_t end = static_cast<int64_t>(mine.end) * args.topk;
  for (int64_t i = static_cast<int64_t>(mine.begin) * args.topk + lane; i < end; i += 32) {
    const int expert = expert_at(args, i, &wrong);
    if (expert >= 0) atomicAdd(&counts[expert], 1);
  }
  for (int first = mine.begin; first < mine.end; first += 32) {
    const uint32_t ranks = lane < mine.end - first ? ranks_of(args, first + lane) : 0;
    for (int r = 0; r < nranks; ++r) {
      const int here = __popc(__ballot_sync(kWarp, (ranks >> r & 1) != 0));
      if (lane == 0 && here > 0) atomicAdd(&counts[experts + r], here);
    }
  }
  if (wrong) counts[experts + nranks + kWordWrong] = 1;
  __syncthreads();
  int32_t* const to = args.moe.chunk_counts + static_cast<int64_t>(blockIdx.x) * words;
  for (int w = static_cast<int>(threadIdx.x); w < words; w += static_cast<int>(blockDim.x)) {
    to[w] = counts[w];
  }
}

// --- exchange ---

__device__ __forceinline__ int32_t clamp_rows(int64_t rows) {
  return static_cast<int32_t>(min(max(rows, int64_t{0}), kMostTargetRows));
}

// Leaves in chunk_counts what the chunks before have, and shows the sums to everyone.
__device__ __forceinline__ void show_counts(const TeamView& view, const RouteArgs& args,
                                            const Turn& turn, int chunks) {
  const int first_extra = args.moe.experts + view.nranks;
  const int words = moe_words(args.moe.experts, view.nranks);
  for (int w = static_cast<int>(threadIdx.x); w < words; w += kExchangeThreads) {
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
    if (w == first_extra + kWordCapacity) total = args.capacity;
    if (w == first_extra + kWordMask) total = static_cast<int32_t>(args.mask);
    for (int i = 1; i <= view.nranks; ++i) {
      const int r = (view.rank + i) % view.nranks;
      show_word(words_at(view, args.moe, turn, r, view.rank) + w, turn,
                static_cast<uint32_t>(total));
    }
  }
}

// The whole block; false if a rank has failed meanwhile.
__device__ __forceinline__ bool read_counts(const TeamView& view, const RouteArgs& args,
                                            const Turn& turn) {
  const int words = moe_words(args.moe.experts, view.nranks);
  Waiter waiter(view, turn.epoch);
  bool alive = true;
  for (int i = static_cast<int>(threadIdx.x); alive && i < view.nranks * words;
       i += kExchangeThreads) {
    const int source = i / words;
    uint32_t value = 0;
    alive = await_word(waiter, turn, words_at(view, args.moe, turn, view.rank, source) + i % words,
                       source, &value);
    args.tables.words[i] = static_cast<int32_t>(value);
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
  for (int i = static_cast<int>(threadIdx.x); i < nranks * experts; i += kExchangeThreads) {
    const int source = i / experts;
    const int expert = i % experts;
    if (all || table.apart(source, table.args.moe.rank_of[expert])) {
      table.of(source)[expert] = 0;
    }
  }
  for (int i = static_cast<int>(threadIdx.x); i < nranks * nranks; i += kExchangeThreads) {
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
    moe.limits[expert] = clamp_rows(limit);
    most = max(most, total);
    const int64_t kept = min(max(limit - start, int64_t{0}), total);
    all_kept += kept;
    if (rank != me) continue;
    args.tables.expert_counts[local] = static_cast<int32_t>(kept);
    args.tables.expert_offsets[local] = clamp_rows(start);
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
  for (int s = 0; s < table.view.nranks; ++s) {
    if (s == table.view.rank) before = total;
    total += table.to_rank(s, rank);
  }
  table.args.moe.starts[rank] = clamp_rows(before);
  table.args.moe.limits[rank] = clamp_rows(capacity > 0 ? capacity : kMostTargetRows);
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
  for (int local = static_cast<int>(threadIdx.x); local < count; local += kExchangeThreads) {
    int32_t total = 0;
    for (int s = 0; s < table.view.nranks; ++s) {
      total += table.of(s)[moe.by_place[first + local]];
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
  for (int i = static_cast<int>(threadIdx.x); i < limits; i += kExchangeThreads) moe.limits[i] = 0;
  for (int i = static_cast<int>(threadIdx.x); i <= count; i += kExchangeThreads) {
    if (i < count) table.args.tables.expert_counts[i] = 0;
    if (by_expert) table.args.tables.expert_offsets[i] = 0;
  }
  if (threadIdx.x == 0) *totals = {0, 0, 0, failed};
  clear_counts(table, true);
}

__device__ __forceinline__ void tell_results(const Table& table, const MoeTotals& totals) {
  const RouteArgs& args = table.args;
  const MoeView& moe = args.moe;
  const int count = moe.first_place[table.view.rank + 1] - moe.first_place[table.view.rank];
  for (int i = static_cast<int>(threadIdx.x); args.recv_counts != nullptr && i < count;
       i += kExchangeThreads) {
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
       i += kExchangeThreads) {
    args.host_words[i] = args.tables.words[i];
  }
  if (threadIdx.x == 0) *args.host_totals = totals;
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) store_release(args.host_done, 1);
}

__global__ void __launch_bounds__(kExchangeThreads)
    exchange(const __grid_constant__ TeamView view, const __grid_constant__ RouteArgs args,
             const int32_t chunks) {
  __shared__ Entries entries;
  __shared__ MoeTotals totals;
  __shared__ int32_t failed;
  const Turn turn = begin(view);
  const int tid = static_cast<int>(threadIdx.x);
  if (turn.ok) {
    send_entry(view, args.call, turn, tid);
    show_counts(view, args, turn, chunks);
    clear_previous_slot(view, turn, threadIdx.x, kExchangeThreads);
    if (tid == 0) {
      failed = 0;
      totals = {};
    }
    if (check_entry(view, args.call, turn, &entries) && read_counts(view, args, turn)) {
      const Table table = {view, args, moe_words(args.moe.experts, view.nranks)};
      if (tid < view.nranks && table.extra(tid, kWordWrong) != 0) {
        failed = kWrongIndex | tid << 8;  // any of them, should there be several
      }
      __syncthreads();
      clear_counts(table, failed != 0);
      if (args.layout != MoeLayout::kRankMajor) {
        if (tid / 32 < view.nranks) place_experts(table, tid / 32, &totals, &failed);
      } else {
        if (tid < view.nranks) place_tokens(table, tid, &totals, &failed);
        count_experts(table);
      }
      __syncthreads();
      if (failed != 0) void_route(table, &totals, failed);
      __syncthreads();
      tell_results(table, totals);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

// --- place ---

// One warp: numbers the lanes whose keys agree, in their order. `next`: of the warp, by key.
__device__ __forceinline__ int32_t take_number(int32_t* next, int key, int lane) {
  const uint32_t same = __match_any_sync(kWarp, key);
  const uint32_t before = same & ((1U << lane) - 1);
  const int32_t number = key >= 0 ? next[key] + __popc(before) : 0;
  __syncwarp();
  if (key >= 0 && before == 0) next[key] += __popc(same);
  __syncwarp();
  return number;
}

__device__ __forceinline__ uint32_t target_of(int rank, int32_t row, int32_t limit) {
  if (static_cast<uint32_t>(row) >= static_cast<uint32_t>(limit)) return kNoTarget;
  return static_cast<uint32_t>(rank) << kTargetRowBits | static_cast<uint32_t>(row);
}

// From how many each warp has to where each warp's first row is.
__device__ __forceinline__ void begin_rows(const RouteArgs& args, int32_t* next, int keys,
                                           const int32_t* chunk) {
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / 32;
  for (int key = static_cast<int>(threadIdx.x); key < keys; key += static_cast<int>(blockDim.x)) {
    int32_t row = args.moe.starts[key] + chunk[key];
    for (int w = 0; w < warps; ++w) {
      const int32_t here = next[w * keys + key];
      next[w * keys + key] = row;
      row += here;
    }
  }
  __syncthreads();
}

__device__ __forceinline__ void place_slots(const RouteArgs& args, int32_t* next,
                                            const int32_t* chunk) {
  const int keys = args.moe.experts;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int32_t* const mine = next + static_cast<int>(threadIdx.x) / 32 * keys;
  const Tokens tokens = tokens_of_warp(args);
  const int64_t first = static_cast<int64_t>(tokens.begin) * args.topk;
  const int64_t end = static_cast<int64_t>(tokens.end) * args.topk;
  bool wrong = false;
  for (int64_t i = first + lane; i < end; i += 32) {
    const int expert = expert_at(args, i, &wrong);
    if (expert >= 0) atomicAdd(&mine[expert], 1);
  }
  begin_rows(args, next, keys, chunk);
  for (int64_t base = first; base < end; base += 32) {
    const int64_t i = base + lane;
    const int expert = i < end ? expert_at(args, i, &wrong) : -1;
    const int32_t row = take_number(mine, expert, lane);
    if (i >= end) continue;
    args.tables.targets[i] =
        expert >= 0 ? target_of(args.moe.rank_of[expert], row, args.moe.limits[expert]) : kNoTarget;
  }
}

__device__ __forceinline__ void place_ranks(const RouteArgs& args, int32_t* next, int nranks,
                                            const int32_t* chunk) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int32_t* const mine = next + static_cast<int>(threadIdx.x) / 32 * nranks;
  const Tokens tokens = tokens_of_warp(args);
  for (int first = tokens.begin; first < tokens.end; first += 32) {
    const uint32_t ranks = lane < tokens.end - first ? ranks_of(args, first + lane) : 0;
    for (int r = 0; r < nranks; ++r) {
      const int here = __popc(__ballot_sync(kWarp, (ranks >> r & 1) != 0));
      if (lane == 0) mine[r] += here;
    }
  }
  begin_rows(args, next, nranks, chunk);
  for (int first = tokens.begin; first < tokens.end; first += 32) {
    const int token = first + lane;
    const bool has = token < tokens.end;
    const uint32_t ranks = has ? ranks_of(args, token) : 0;
    for (int r = 0; r < nranks; ++r) {
      const bool goes = (ranks >> r & 1) != 0;
      const int32_t row = take_number(mine, goes ? r : -1, lane);
      if (!has) continue;
      args.tables.targets[static_cast<int64_t>(token) * nranks + r] =
          goes ? target_of(r, row, args.moe.limits[r]) : kNoTarget;
    }
  }
  bool wrong = false;
  const int64_t end = static_cast<int64_t>(tokens.end) * args.topk;
  for (int64_t i = static_cast<int64_t>(tokens.begin) * args.topk + lane; i < end; i += 32) {
    args.tables.experts[i] = static_cast<int16_t>(expert_at(args, i, &wrong));
  }
}

__global__ void __launch_bounds__(256)
    place(const __grid_constant__ RouteArgs args, const int32_t nranks) {
  extern __shared__ int32_t next[];  // [warps, keys]
  await_predecessor();
  const bool by_expert = args.layout != MoeLayout::kRankMajor;
  const int keys = by_expert ? args.moe.experts : nranks;
  const int all = keys * static_cast<int>(blockDim.x) / 32;
  for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
    next[i] = 0;
  }
  __syncthreads();
  const int32_t* const chunk = args.moe.chunk_counts + static_cast<int64_t>(blockIdx.x) *
                                                           moe_words(args.moe.experts, nranks);
  if (by_expert) {
    place_slots(args, next, chunk);
  } else {
    place_ranks(args, next, nranks, chunk + args.moe.experts);
  }
}

constexpr int kMostWarps = 8;
constexpr size_t kPlaceBytes = size_t{kMostMoeExperts} * sizeof(int32_t);

// As many warps as have room for a counter of each expert.
int warps_for(int experts) {
  const auto each = static_cast<size_t>(experts) * sizeof(int32_t);
  return static_cast<int>(std::clamp<size_t>(kPlaceBytes / each, 1, kMostWarps));
}

}  // namespace

cudaError_t launch_moe_route(const TeamView& view, const RouteArgs& args, cudaStream_t stream) {
  const int experts = args.moe.experts;
  const int warps = warps_for(experts);
  // Of 32 tokens a warp at least.
  const int chunks = std::min((args.tokens + warps * 32 - 1) / (warps * 32), kRouteBlocks);
  const LaunchShape chunked = {chunks, warps * 32, stream, true};
  const size_t words = static_cast<size_t>(moe_words(experts, view.nranks));
  if (chunks > 0) {
    const cudaError_t code = start(count, chunked, words * sizeof(int32_t), args, view.nranks);
    if (code != cudaSuccess) return code;
  }
  const cudaError_t code =
      start(exchange, {1, kExchangeThreads, stream, true}, 0, view, args, chunks);
  if (code != cudaSuccess || chunks == 0) return code;
  const int keys = args.layout == MoeLayout::kRankMajor ? view.nranks : experts;
  return start(place, chunked, static_cast<size_t>(warps * keys) * sizeof(int32_t), args,
               view.nranks);
}

cudaError_t load_moe_route() {
  cudaFuncAttributes attributes;
  for (const auto code :
       {cudaFuncGetAttributes(&attributes, count), cudaFuncGetAttributes(&attributes, exchange),
        cudaFuncGetAttributes(&attributes, place)}) {
    if (code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
