// Combine: the rows of each token are read where the experts' ranks have them and added up in FP32,
// in the order of slots or ranks. Bytes over the link: each remote row once. Two meetings: the
// entry, which says where everyone's rows are, and the exit, after which a rank may change its own.
// As many threads as a row has packs, up to 896: the loads of a token's rows are under way at once
// in each, which fills the link from 16 blocks.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_board.cuh"
#include "kernels/cuda/poison.cuh"

namespace zbccl::cuda {
namespace {

constexpr int kMostThreads = 896;
constexpr int kLeastThreads = 128;  // of a block: entries of 16 ranks, and end() in sync.cuh
constexpr int kBatch = 8;           // rows that are loaded at once

struct Rows {
  const char* y;
  int64_t stride;
  const float* weights;
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

template <DataType kType>
struct Summer {
  using V = Vec<kType>;
  using Sum = typename V::Sum;
  const TeamView& view;
  const CombineArgs& args;
  const CombineShared& shared;

  static __device__ __forceinline__ int rank_of(uint32_t target) {
    return static_cast<int>(target >> kTargetRowBits);
  }
  static __device__ __forceinline__ int64_t row_of(uint32_t target) {
    return target & ((1U << kTargetRowBits) - 1);
  }
  // Where a row is left out, kNoTarget.
  __device__ __forceinline__ uint32_t target(const uint32_t* targets, int slot) const {
    const uint32_t to = slot < args.tables.width ? targets[slot] : kNoTarget;
    return to != kNoTarget && (args.mask >> rank_of(to) & 1) != 0 ? kNoTarget : to;
  }
  __device__ __forceinline__ Pack load(uint32_t target, int pack) const {
    const Rows& rows = shared.rows[rank_of(target)];
    return load_plain(rows.y + row_of(target) * rows.stride +
                      static_cast<int64_t>(pack) * kPackBytes);
  }
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
  __device__ __forceinline__ void begin_sum(Sum* sum, int64_t token, int pack) const {
    const int64_t at = (token * args.packs + pack) * kPackBytes;
    const char* const first = args.bias[0] != nullptr ? args.bias[0] : args.bias[1];
    if (first == nullptr) return clear(sum);
    V::first(*sum, load_plain(first + at));
    if (args.bias[0] != nullptr && args.bias[1] != nullptr) {
      add_pack(sum, load_plain(args.bias[1] + at));
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

  // The rows of one token, a batch at a time: loads before sums. `rank`: only its rows; negative:
  // all.
  __device__ __forceinline__ bool add_rows(Sum* sum, const uint32_t* targets, const float* weights,
                                           int pack, int rank) const {
    bool any = false;
    for (int first = 0; first < args.tables.width; first += kBatch) {
      uint32_t to[kBatch];
      Pack row[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        to[i] = target(targets, first + i);
        if (rank >= 0 && to[i] != kNoTarget && rank_of(to[i]) != rank) to[i] = kNoTarget;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (to[i] != kNoTarget) row[i] = load(to[i], pack);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (to[i] == kNoTarget) continue;
        any = true;
        if (weights != nullptr) {
          add_pack(sum, row[i], weights[first + i]);
        } else {
          add_pack(sum, row[i]);
        }
      }
    }
    return any;
  }

  // The rows of each rank first, rounded.
  __device__ __forceinline__ void add_by_rank(Sum* sum, const uint32_t* targets,
                                              const float* weights, int pack) const {
    for (int r = 0; r < view.nranks; ++r) {
      Sum partial;
      clear(&partial);
      if (!add_rows(&partial, targets, weights, pack, r)) continue;
      add_pack(sum, V::finish(partial, RedOp::kSum, 2));
    }
  }

  __device__ __forceinline__ void add_weights(const uint32_t* targets, int64_t token,
                                              int slot) const {
    float sum = 0;
    for (int i = 0; i < args.tables.width; ++i) {
      const uint32_t to = target(targets, i);
      if (to == kNoTarget) continue;
      sum = add(sum, shared.rows[rank_of(to)].weights[row_of(to) * args.topk + slot]);
    }
    args.combined_weights[token * args.topk + slot] = float_of(F32::narrow(sum));
  }
};

// `lanes` threads for each token, several tokens in a block.
template <DataType kType, bool kByRank>
__global__ void __launch_bounds__(kMostThreads, 1)
    combine_rows(const __grid_constant__ TeamView view, const __grid_constant__ CombineArgs args,
                 const int32_t lanes) {
  __shared__ CombineShared shared;
  const Turn turn = begin(view);
  if (turn.ok) {
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (meet_rows(view, args, turn, &shared)) {
      const Summer<kType> summer = {view, args, shared};
      const int each = static_cast<int>(blockDim.x) / lanes;
      const int lane = static_cast<int>(threadIdx.x) % lanes;
      const int group = static_cast<int>(threadIdx.x) / lanes;
      // Neighbouring tokens go to different blocks.
      const int64_t first = static_cast<int64_t>(group) * gridDim.x + blockIdx.x;
      const int64_t step = static_cast<int64_t>(each) * gridDim.x;
      for (int64_t token = first; group < each && token < args.tokens; token += step) {
        const uint32_t* const targets = args.tables.targets + token * args.tables.width;
        const float* const weights =
            args.weights != nullptr ? args.weights + token * args.topk : nullptr;
        for (int pack = lane; pack < args.packs; pack += lanes) {
          typename Vec<kType>::Sum sum;
          summer.begin_sum(&sum, token, pack);
          if (kByRank) {
            summer.add_by_rank(&sum, targets, weights, pack);
          } else {
            (void)summer.add_rows(&sum, targets, weights, pack, -1);
          }
          store_plain(args.out + token * args.out_stride + static_cast<int64_t>(pack) * kPackBytes,
                      summer.round(sum));
        }
        for (int k = lane; args.combined_weights != nullptr && k < args.topk; k += lanes) {
          summer.add_weights(targets, token, k);
        }
      }
      meet_at_exit(view, turn);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

template <typename Use>
cudaError_t choose_combine(DataType type, bool by_rank, Use&& use) {
  const auto of_type = [&]<DataType kType>() {
    return by_rank ? use(combine_rows<kType, true>) : use(combine_rows<kType, false>);
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
  const int rounds = (args.packs + kMostThreads - 1) / kMostThreads;
  const int lanes = ((args.packs + rounds - 1) / rounds + 31) / 32 * 32;
  LaunchShape filled = shape;
  filled.threads = std::max(kMostThreads / lanes * lanes, kLeastThreads);
  return choose_combine(type, args.pre_reduce,
                        [&](auto kernel) { return start(kernel, filled, 0, view, args, lanes); });
}

cudaError_t load_moe_combine() {
  cudaFuncAttributes attributes;
  for (const DataType type : {DataType::kF32, DataType::kF16, DataType::kBf16}) {
    for (const bool by_rank : {false, true}) {
      const cudaError_t code = choose_combine(
          type, by_rank, [&](auto kernel) { return cudaFuncGetAttributes(&attributes, kernel); });
      if (code != cudaSuccess) return code;
    }
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
