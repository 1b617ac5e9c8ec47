// Combine: the rows of each token are read where the experts' ranks have them and added up in FP32,
// in the order of slots or ranks. Bytes over the link: each remote row once. Two meetings: the
// entry, which says where everyone's rows are, and the exit, after which a rank may change its own.
// Half as many threads as a row has packs, up to 448. Each has sixteen loads under way: two packs
// of eight rows, which are those of several tokens where a token has few. It knows where the next
// rows are before these have come. That fills the link from 16 blocks.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_board.cuh"
#include "kernels/cuda/poison.cuh"

namespace zbccl::cuda {
namespace {

constexpr uint32_t kWholeWarp = 0xFFFFFFFFU;
constexpr int kMostThreads = 448;
constexpr int kLeastThreads = 128;  // of a block: entries of 16 ranks, and end() in sync.cuh
constexpr int kBatch = 8;           // rows that a thread loads at once,
constexpr int kPacks = 2;           // and how many packs of each

struct Rows {
  const char* y;
  int64_t stride;
  const float* weights;
};

// A slot of one of the tokens that a warp adds up at once; every lane knows another.
struct Slot {
  uint32_t target = kNoTarget;
  float weight = 0;
};

struct CombineShared {
  Entries entries;
  MoeNotes notes[kMaxRanks];
  Rows rows[kMaxRanks];
};

__device__ __forceinline__ bool meet_rows(const TeamView& view, const CombineArgs& args,
                                          const Turn& turn, CombineShared* shared) {
  if (blockIdx.x == 0) {
    send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    send_notice(view, args.moe, turn, args.notes);
  }
  if (!check_entry(view, args.call, turn, &shared->entries) ||
      !await_notices(view, args.moe, turn, shared->notes)) {
    return false;
  }
  const int lacks = lacking_weights(view, shared->notes);
  if (lacks >= 0) {
    if (threadIdx.x == 0) {
      fail(view, FailureKind::kMismatch, static_cast<uint32_t>(lacks), kAtData, turn.epoch, 0, 0);
    }
    return false;
  }
  const int r = static_cast<int>(threadIdx.x);
  if (r == view.rank) {
    shared->rows[r] = {args.y, args.y_stride, args.recv_weights};
  } else if (r < view.nranks) {
    const uint32_t* const words = shared->entries.words[r];
    const MoeNotes& notes = shared->notes[r];
    shared->rows[r] = {
        resolve(view, r, words[4], words[5]), noticed_long(notes, kNoticeStride),
        reinterpret_cast<const float*>(noticed_array(view, notes, r, kPlaceTopkWeights))};
  }
  __syncthreads();
  return true;
}

// One warp's part in the rows of kTokens tokens at once.
template <DataType kType, int kTokens>
struct Summer {
  // Lanes of a token: lane t * kSlots + s has slot s of token t.
  static constexpr int kSlots = kTokens > 1 ? kBatch / kTokens : 32;
  using V = Vec<kType>;
  using Sum = typename V::Sum;
  const TeamView& view;
  const CombineArgs& args;
  const CombineShared& shared;
  int step;  // between its tokens
  int lane;

  // --- what the lanes know ---

  // Of the tokens from `first` on. It is loaded before it is needed.
  __device__ __forceinline__ Slot fetch(int first) const {
    const int slot = lane % kSlots;
    const int token = first + lane / kSlots * step;
    Slot it;
    if (lane >= kTokens * kSlots || slot >= args.tables.width || token >= args.tokens) return it;
    it.target = args.tables.targets[static_cast<int64_t>(token) * args.tables.width + slot];
    if (args.weights != nullptr)
      it.weight = args.weights[static_cast<int64_t>(token) * args.topk + slot];
    return it;
  }
  // Rows of masked ranks are left out.
  __device__ __forceinline__ uint32_t present(const Slot& it) const {
    const bool has = it.target != kNoTarget && (args.mask >> rank_of(it.target) & 1) == 0;
    return __ballot_sync(kWholeWarp, has);
  }
  __device__ __forceinline__ const char* row_at(const Slot& it) const {
    if (it.target == kNoTarget) return nullptr;
    const Rows& rows = shared.rows[rank_of(it.target)];
    return rows.y + row_of(it.target) * rows.stride;
  }
  static __device__ __forceinline__ int rank_of(uint32_t target) {
    return static_cast<int>(target >> kTargetRowBits);
  }
  static __device__ __forceinline__ int64_t row_of(uint32_t target) {
    return target & ((1U << kTargetRowBits) - 1);
  }

  // --- sums ---

  static __device__ __forceinline__ void clear(Sum* sum) {
#pragma unroll
    for (int i = 0; i < V::kLanes; ++i) sum->lane[i] = 0;
  }
  static __device__ __forceinline__ void add_pack(Sum* sum, Pack pack) {
    V::add(*sum, pack, RedOp::kSum);
  }
  static __device__ __forceinline__ void add_pack(Sum* sum, Pack pack, float weight) {
    Sum row;
    V::first(row, pack);
#pragma unroll
    for (int i = 0; i < V::kLanes; ++i) {
      sum->lane[i] = add(sum->lane[i], multiply(row.lane[i], weight));
    }
  }
  // A NaN of f32 may be a bias's own, which no operation has made the canonical one.
  static __device__ __forceinline__ Pack round(Sum sum) {
    if constexpr (kType == DataType::kF32) {
#pragma unroll
      for (int i = 0; i < V::kLanes; ++i) sum.lane[i] = float_of(F32::narrow(sum.lane[i]));
    }
    return V::finish(sum, RedOp::kSum, 2);
  }
  __device__ __forceinline__ void put(int token, int pack, const Sum& sum) const {
    store_plain(args.out + token * args.out_stride + pack * kPackBytes, round(sum));
  }

  // The packs of a thread: `at` and those `lanes` apart, where the row has them.
  struct Packs {
    int at[kPacks];
    bool has[kPacks];
    __device__ __forceinline__ Packs(int first, int lanes, int count) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        at[p] = first + p * lanes;
        has[p] = at[p] < count;
      }
    }
  };
  using Loaded = Pack[kPacks][kBatch];
  using Sums = Sum[kPacks];

  // Slots `first` to first + kBatch - 1 of `slots`.
  static __device__ __forceinline__ void load(Loaded& rows, const char* row, uint32_t slots,
                                              int first, const Packs& packs) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if ((slots >> (first + i) & 1) == 0) continue;  // of all lanes
      const auto at = reinterpret_cast<const char*>(
          __shfl_sync(kWholeWarp, reinterpret_cast<uint64_t>(row), first + i));
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        if (packs.has[p]) rows[p][i] = load_plain(at + packs.at[p] * kPackBytes);
      }
    }
  }
  // Those from kBegin to kEnd - 1, in their order.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void add_rows(Sums& sums, const Loaded& rows, const Slot& it,
                                           uint32_t slots, int first) const {
#pragma unroll
    for (int i = kBegin; i < kEnd; ++i) {
      if ((slots >> (first + i) & 1) == 0) continue;
      if (args.weights != nullptr) {
        const float weight = __shfl_sync(kWholeWarp, it.weight, first + i);
#pragma unroll
        for (int p = 0; p < kPacks; ++p) add_pack(&sums[p], rows[p][i], weight);
      } else {
#pragma unroll
        for (int p = 0; p < kPacks; ++p) add_pack(&sums[p], rows[p][i]);
      }
    }
  }
  __device__ __forceinline__ void begin_sums(Sums& sums, int token, const Packs& packs) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) clear(&sums[p]);
    const char* const first = args.bias[0] != nullptr ? args.bias[0] : args.bias[1];
    if (first == nullptr) return;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (!packs.has[p]) continue;
      const int64_t at = (static_cast<int64_t>(token) * args.packs + packs.at[p]) * kPackBytes;
      V::first(sums[p], load_plain(first + at));
      if (first == args.bias[1] || args.bias[1] == nullptr) continue;
      add_pack(&sums[p], load_plain(args.bias[1] + at));
    }
  }
  __device__ __forceinline__ void put_sums(const Sums& sums, int token, const Packs& packs) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (packs.has[p]) put(token, packs.at[p], sums[p]);
    }
  }

  // Where a token has more than half a batch of rows.
  __device__ __forceinline__ void add_token(Sums& sums, const Slot& it, const char* row,
                                            uint32_t slots, const Packs& packs) const {
    for (int first = 0; first < args.tables.width; first += kBatch) {
      Loaded rows;
      load(rows, row, slots, first, packs);
      add_rows<0, kBatch>(sums, rows, it, slots, first);
    }
  }
  // The rows of each rank first, rounded.
  __device__ __forceinline__ void add_by_rank(Sums& sums, const Slot& it, const char* row,
                                              uint32_t slots, const Packs& packs) const {
    for (int r = 0; r < view.nranks; ++r) {
      const uint32_t theirs = slots & __ballot_sync(kWholeWarp, rank_of(it.target) == r);
      if (theirs == 0) continue;
      Sums partial;
#pragma unroll
      for (int p = 0; p < kPacks; ++p) clear(&partial[p]);
      add_token(partial, it, row, theirs, packs);
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        add_pack(&sums[p], V::finish(partial[p], RedOp::kSum, 2));
      }
    }
  }
  template <int kToken = 0>
  __device__ __forceinline__ void put_tokens(const Loaded& rows, const Slot& it, uint32_t slots,
                                             int token, const Packs& packs) const {
    if constexpr (kToken < kTokens) {
      if (token >= args.tokens) return;
      Sums sums;
      begin_sums(sums, token, packs);
      add_rows<kToken * kSlots, (kToken + 1) * kSlots>(sums, rows, it, slots, 0);
      put_sums(sums, token, packs);
      put_tokens<kToken + 1>(rows, it, slots, token + step, packs);
    }
  }

  // These packs of the tokens from `token` on. The whole warp.
  template <bool kByRank>
  __device__ __forceinline__ void sum_packs(const Slot& it, const char* row, uint32_t slots,
                                            int token, const Packs& packs) const {
    if constexpr (kTokens > 1) {
      Loaded rows;
      load(rows, row, slots, 0, packs);
      put_tokens(rows, it, slots, token, packs);
    } else {
      Sums sums;
      begin_sums(sums, token, packs);
      if constexpr (kByRank) {
        add_by_rank(sums, it, row, slots, packs);
      } else {
        add_token(sums, it, row, slots, packs);
      }
      put_sums(sums, token, packs);
    }
  }

  // Lane `slot` of one warp for each slot; all loads of a batch at once, as of rows.
  __device__ __forceinline__ void sum_weights(const Slot& it, uint32_t slots, int first) const {
    const int slot = min(lane, args.topk - 1);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      float sum = 0;
      for (int from = 0; from < min(kSlots, args.tables.width); from += kBatch) {
        float weight[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int other = t * kSlots + from + i;
          const uint32_t to = __shfl_sync(kWholeWarp, it.target, other);
          if (from + i >= kSlots || (slots >> other & 1) == 0) continue;
          weight[i] = shared.rows[rank_of(to)].weights[row_of(to) * args.topk + slot];
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (from + i < kSlots && (slots >> (t * kSlots + from + i) & 1) != 0) {
            sum = add(sum, weight[i]);
          }
        }
      }
      const int token = first + t * step;
      if (lane < args.topk && token < args.tokens) {
        args.combined_weights[static_cast<int64_t>(token) * args.topk + lane] =
            float_of(F32::narrow(sum));
      }
    }
  }
};

// `lanes` threads, whole warps, for each row; several rows in a block.
template <DataType kType, int kTokens, bool kByRank>
__global__ void __launch_bounds__(kMostThreads, 1)
    combine_rows(const __grid_constant__ TeamView view, const __grid_constant__ CombineArgs args,
                 const int32_t lanes) {
  __shared__ CombineShared shared;
  const Turn turn = begin(view);
  if (turn.ok) {
    const int groups = static_cast<int>(blockDim.x) / lanes;
    const int group = static_cast<int>(threadIdx.x) / lanes;
    const int thread = static_cast<int>(threadIdx.x) % lanes;
    // Neighbouring tokens go to different blocks.
    const int step = groups * static_cast<int>(gridDim.x);
    const Summer<kType, kTokens> summer = {view, args, shared, step, thread % 32};
    const int tokens = group < groups ? args.tokens : 0;
    int token = group * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
    Slot next = summer.fetch(token);
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (meet_rows(view, args, turn, &shared)) {
      for (; token < tokens; token += kTokens * step) {
        const Slot it = next;
        const uint32_t slots = summer.present(it);
        const char* const row = summer.row_at(it);
        next = summer.fetch(token + kTokens * step);
        for (int pack = thread; pack - summer.lane < args.packs; pack += kPacks * lanes) {
          const typename Summer<kType, kTokens>::Packs packs(pack, lanes, args.packs);
          summer.template sum_packs<kByRank>(it, row, slots, token, packs);
        }
        if (!kByRank && args.combined_weights != nullptr && thread < 32) {
          summer.sum_weights(it, slots, token);
        }
      }
      meet_at_exit(view, turn);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

// Calls use() with the instance for tokens of `width` rows.
template <typename Use>
cudaError_t choose_combine(DataType type, int width, bool by_rank, Use&& use) {
  const auto of_type = [&]<DataType kType>() {
    if (by_rank) return use(combine_rows<kType, 1, true>);
    if (width == 1) return use(combine_rows<kType, 8, false>);
    if (width == 2) return use(combine_rows<kType, 4, false>);
    if (width <= 4) return use(combine_rows<kType, 2, false>);
    return use(combine_rows<kType, 1, false>);
  };
  switch (type) {
    case DataType::kF32: return of_type.template operator()<DataType::kF32>();
    case DataType::kF16: return of_type.template operator()<DataType::kF16>();
    case DataType::kBf16: return of_type.template operator()<DataType::kBf16>();
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t launch_moe_combine(const TeamView& view, const CombineArgs& args, DataType type,
                               const LaunchShape& shape) {
  // A row in as few rounds as its packs need, of whole warps.
  const int rounds = (args.packs + kPacks * kMostThreads - 1) / (kPacks * kMostThreads);
  const int each = kPacks * rounds;
  const int lanes = ((args.packs + each - 1) / each + 31) / 32 * 32;
  LaunchShape filled = shape;
  filled.threads = std::max(kMostThreads / lanes * lanes, kLeastThreads);
  return choose_combine(type, args.tables.width, args.pre_reduce,
                        [&](auto kernel) { return start(kernel, filled, 0, view, args, lanes); });
}

cudaError_t load_moe_combine() {
  cudaFuncAttributes attributes;
  const auto load = [&](auto kernel) { return cudaFuncGetAttributes(&attributes, kernel); };
  for (const DataType type : {DataType::kF32, DataType::kF16, DataType::kBf16}) {
    for (const int width : {1, 2, 4, 8}) {
      const cudaError_t code = choose_combine(type, width, false, load);
      if (code != cudaSuccess) return code;
    }
    const cudaError_t code = choose_combine(type, 1, true, load);
    if (code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
