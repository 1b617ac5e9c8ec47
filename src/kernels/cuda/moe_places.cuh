// What a route does with this rank's own indices: counts them, and numbers the rows of each expert
// or rank in the order of tokens and slots. Blocks and warps share the tokens in their order.
#pragma once

#include "kernels/cuda/moe.h"
#include "kernels/cuda/sync.cuh"

namespace zbccl::cuda {

inline constexpr uint32_t kWarp = 0xFFFFFFFFU;

struct Tokens {
  int begin;
  int end;
};

// One of the equal parts of the tokens, in their order, that blocks look at.
struct Chunk {
  int number;
  int chunks;
};

// Those of this warp; in the order of chunks and warps they are in the order of tokens.
__device__ __forceinline__ Tokens tokens_of_warp(const RouteArgs& args, const Chunk& chunk) {
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int parts = chunk.chunks * warps;
  const int each = (args.tokens + parts - 1) / parts;
  const int64_t part = static_cast<int64_t>(chunk.number) * warps + threadIdx.x / 32;
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

inline constexpr int kSlotsAtOnce = 8;  // whose loads are under way together

// Bits of the ranks that hold one of the token's experts.
__device__ __forceinline__ uint32_t ranks_of(const RouteArgs& args, int token) {
  uint32_t ranks = 0;
  bool wrong = false;
  for (int first = 0; first < args.topk; first += kSlotsAtOnce) {
    int expert[kSlotsAtOnce];
#pragma unroll
    for (int k = 0; k < kSlotsAtOnce; ++k) {
      expert[k] = -1;
      if (first + k < args.topk) {
        expert[k] = expert_at(args, static_cast<int64_t>(token) * args.topk + first + k, &wrong);
      }
    }
#pragma unroll
    for (int k = 0; k < kSlotsAtOnce; ++k) {
      if (expert[k] >= 0) ranks |= 1U << args.moe.rank_of[expert[k]];
    }
  }
  return ranks;
}

// The whole warp: calls use(slot, expert) for each slot of its tokens, in their order, and for
// lanes beyond the last one with a slot of -1. Sets `wrong` as expert_at() does.
template <typename Use>
__device__ __forceinline__ void for_each_slot(const RouteArgs& args, const Tokens& tokens, int lane,
                                              bool* wrong, const Use& use) {
  const int64_t end = static_cast<int64_t>(tokens.end) * args.topk;
  for (int64_t base = static_cast<int64_t>(tokens.begin) * args.topk; base < end;
       base += 32 * kSlotsAtOnce) {
    int expert[kSlotsAtOnce];
#pragma unroll
    for (int k = 0; k < kSlotsAtOnce; ++k) {
      const int64_t slot = base + 32 * k + lane;
      expert[k] = slot < end ? expert_at(args, slot, wrong) : -1;
    }
#pragma unroll
    for (int k = 0; k < kSlotsAtOnce; ++k) {
      const int64_t slot = base + 32 * k + lane;
      if (base + 32 * k >= end) break;
      use(slot < end ? slot : -1, expert[k]);
    }
  }
}

// --- counts ---

// This block's part of all words, in shared memory.
__device__ __forceinline__ void count_tokens(const RouteArgs& args, int nranks, const Chunk& chunk,
                                             int32_t* counts) {
  const int experts = args.moe.experts;
  const int words = moe_words(experts, nranks);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int w = static_cast<int>(threadIdx.x); w < words; w += static_cast<int>(blockDim.x)) {
    counts[w] = 0;
  }
  __syncthreads();
  const Tokens mine = tokens_of_warp(args, chunk);
  bool wrong = false;
  for_each_slot(args, mine, lane, &wrong, [&](int64_t /*slot*/, int expert) {
    if (expert >= 0) atomicAdd(&counts[expert], 1);
  });
  for (int first = mine.begin; first < mine.end; first += 32) {
    const uint32_t ranks = lane < mine.end - first ? ranks_of(args, first + lane) : 0;
    for (int r = 0; r < nranks; ++r) {
      const int here = __popc(__ballot_sync(kWarp, (ranks >> r & 1) != 0));
      if (lane == 0 && here > 0) atomicAdd(&counts[experts + r], here);
    }
  }
  if (wrong) counts[experts + nranks + kWordWrong] = 1;
  __syncthreads();
}

// The counts of chunk `chunk` of the tokens.
__device__ __forceinline__ int32_t* chunk_at(const RouteArgs& args, int nranks, int chunk) {
  return args.moe.chunk_counts + static_cast<int64_t>(chunk) * moe_words(args.moe.experts, nranks);
}

__device__ __forceinline__ void keep_counts(const RouteArgs& args, int nranks, int chunk,
                                            const int32_t* counts) {
  int32_t* const to = chunk_at(args, nranks, chunk);
  const int words = moe_words(args.moe.experts, nranks);
  for (int w = static_cast<int>(threadIdx.x); w < words; w += static_cast<int>(blockDim.x)) {
    to[w] = counts[w];
  }
  __syncthreads();
}

// --- places ---

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

__device__ __forceinline__ void place_slots(const RouteArgs& args, const Chunk& chunk,
                                            int32_t* next, const int32_t* before) {
  const int keys = args.moe.experts;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int32_t* const mine = next + static_cast<int>(threadIdx.x) / 32 * keys;
  const Tokens tokens = tokens_of_warp(args, chunk);
  bool wrong = false;
  for_each_slot(args, tokens, lane, &wrong, [&](int64_t /*slot*/, int expert) {
    if (expert >= 0) atomicAdd(&mine[expert], 1);
  });
  begin_rows(args, next, keys, before);
  for_each_slot(args, tokens, lane, &wrong, [&](int64_t slot, int expert) {
    const int rank = expert >= 0 ? args.moe.rank_of[expert] : 0;
    const int32_t limit = expert >= 0 ? args.moe.limits[expert] : 0;
    const int32_t row = take_number(mine, expert, lane);
    if (slot >= 0) args.tables.targets[slot] = target_of(rank, row, limit);
  });
}

__device__ __forceinline__ void place_ranks(const RouteArgs& args, const Chunk& chunk,
                                            int32_t* next, int nranks, const int32_t* before) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int32_t* const mine = next + static_cast<int>(threadIdx.x) / 32 * nranks;
  const Tokens tokens = tokens_of_warp(args, chunk);
  const auto ranks_from = [&](int first) {
    return lane < tokens.end - first ? ranks_of(args, first + lane) : 0;
  };
  const uint32_t first_ranks = ranks_from(tokens.begin);  // mostly all
  const auto ranks_again = [&](int first) {
    return first == tokens.begin ? first_ranks : ranks_from(first);
  };
  for (int first = tokens.begin; first < tokens.end; first += 32) {
    const uint32_t ranks = ranks_again(first);
    for (int r = 0; r < nranks; ++r) {
      const int here = __popc(__ballot_sync(kWarp, (ranks >> r & 1) != 0));
      if (lane == 0) mine[r] += here;
    }
  }
  begin_rows(args, next, nranks, before);
  for (int first = tokens.begin; first < tokens.end; first += 32) {
    const int token = first + lane;
    const bool has = token < tokens.end;
    const uint32_t ranks = ranks_again(first);
    for (int r = 0; r < nranks; ++r) {
      const bool goes = (ranks >> r & 1) != 0;
      const int32_t row = take_number(mine, goes ? r : -1, lane);
      if (!has) continue;
      args.tables.targets[static_cast<int64_t>(token) * nranks + r] =
          goes ? target_of(r, row, args.moe.limits[r]) : kNoTarget;
    }
  }
  bool wrong = false;
  for_each_slot(args, tokens, lane, &wrong, [&](int64_t slot, int expert) {
    if (slot >= 0) args.tables.experts[slot] = static_cast<int16_t>(expert);
  });
}

// The places of this block's tokens. `next`: shared memory, a counter for each warp and key.
__device__ __forceinline__ void place_all(const RouteArgs& args, int nranks, const Chunk& chunk,
                                          int32_t* next) {
  const bool by_expert = args.layout != MoeLayout::kRankMajor;
  const int keys = by_expert ? args.moe.experts : nranks;
  const int all = keys * static_cast<int>(blockDim.x) / 32;
  for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
    next[i] = 0;
  }
  __syncthreads();
  const int32_t* const before = chunk_at(args, nranks, chunk.number);
  if (by_expert) {
    place_slots(args, chunk, next, before);
  } else {
    place_ranks(args, chunk, next, nranks, before + args.moe.experts);
  }
}

}  // namespace zbccl::cuda
