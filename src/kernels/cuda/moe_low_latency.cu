// Route and dispatch of an ExpertMasked output in one kernel, for few tokens. Where an expert's
// rows begin does not depend on other experts there, so each block finds the places of its own
// tokens: this rank's earlier slots it counts itself, and of the other ranks it waits for the
// counts of the token's experts only. Two meetings: the entry, which goes with the outputs and the
// counts, and the exit. A block takes a token at a time, all its threads quantize the row, and its
// lanes push it by the bulk-copy engine to one place each. The last block, which is idle where
// tokens are fewest, tells the counts before and fills in the handle's tables after its own tokens.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_codes.cuh"
#include "kernels/cuda/moe_exchange.cuh"

namespace zbccl::cuda {
namespace {

constexpr int kMostThreads = 512;
constexpr int kLeastThreads = 128;  // entries of 16 ranks, and end() in sync.cuh
constexpr int kMostTopk = 32;
constexpr int kBuffers = 2;                       // of rows, which turn about
constexpr size_t kMostBytes = size_t{200} << 10;  // of a block

// Shared memory of a block.
struct BlockBytes {
  int32_t row;     // a buffer
  int32_t scales;  // of one row
  int32_t counts;
};

struct JointShared {
  DispatchShared dispatch;
  ExchangeShared exchange;
  int32_t extra[kMaxRanks][kMoeExtraWords];
  int32_t expert[kMostTopk];             // of the token; -1: none
  int32_t before[kMostTopk][kMaxRanks];  // rows of each rank for it
  uint32_t target[kMostTopk];
  uint32_t largest[kMostThreads / 32];
  bool wrong;  // an index, somewhere: no row goes anywhere
};

template <DataType kType>
struct Joint {
  using Reader = RowReader<kType, 2>;  // mostly one pass
  const TeamView& view;
  const RouteArgs& route;
  const DispatchArgs& args;
  const Turn& turn;
  JointShared& shared;
  char* rows;       // kBuffers
  float* scales;    // of the row at hand
  int32_t* counts;  // [experts] slots of this rank before the token at hand, for each expert
  const BlockBytes& bytes;
  int tid;
  int threads;

  __device__ __forceinline__ bool tells() const { return blockIdx.x == gridDim.x - 1; }
  __device__ __forceinline__ const uint64_t* board(int source) const {
    return words_at(view, args.moe, turn, view.rank, source);
  }
  __device__ __forceinline__ bool apart(int a, int b) const {
    return ((static_cast<uint32_t>(shared.extra[a][kWordMask]) >> b |
             static_cast<uint32_t>(shared.extra[b][kWordMask]) >> a) &
            1) != 0;
  }

  // --- before the ranks meet ---

  // `words`: [moe_words], which are counts's, too.
  __device__ __forceinline__ void tell(int32_t* words) const {
    send_entry(view, args.call, turn, tid);
    send_notice(view, args.moe, turn, args.notes);
    count_tokens(route, view.nranks, {0, 1}, words);
    const int all = moe_words(args.moe.experts, view.nranks);
    for (int w = tid; w < all; w += threads) show_total(view, route, turn, w, words[w]);
    __syncthreads();
  }

  __device__ __forceinline__ void clear_counts_here() const {
    for (int e = tid; e < args.moe.experts; e += threads) counts[e] = 0;
    __syncthreads();
  }

  // The token's experts, and the slots from token `from` to it.
  __device__ __forceinline__ void look_at(int from, int token) const {
    bool wrong = false;
    const int64_t first = static_cast<int64_t>(token) * args.topk;
    if (tid < args.topk) shared.expert[tid] = expert_at(route, first + tid, &wrong);
    constexpr int kAtOnce = 4;
    for (int64_t base = static_cast<int64_t>(from) * args.topk + tid; base - tid < first;
         base += kAtOnce * threads) {
      int expert[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int64_t slot = base + k * threads;
        expert[k] = slot < first ? expert_at(route, slot, &wrong) : -1;
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (expert[k] >= 0) atomicAdd(&counts[expert[k]], 1);
      }
    }
  }

  // The row as it is sent, in shared memory.
  __device__ __forceinline__ void read_row(int token, char* to) const {
    const char* const from = args.x + token * args.x_stride;
    if (args.quant == MoeQuant::kNone) {
      constexpr int kAtOnce = 4;
      const int packs = args.row_bytes / kPackBytes;
      for (int base = tid; base < packs; base += kAtOnce * threads) {
        Pack pack[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          const int at = base + k * threads;
          if (at < packs) pack[k] = load_plain(from + static_cast<int64_t>(at) * kPackBytes);
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          const int at = base + k * threads;
          if (at < packs) reinterpret_cast<Pack*>(to)[at] = pack[k];
        }
      }
    } else {
      const Reader reader = {from, args.recv_row_bytes, tid, threads};
      typename Reader::Loaded loaded;
      reader.load(&loaded, 0);
      if (args.quant == MoeQuant::kInt8) {
        quantize_int8(reader, loaded, to, scales,
                      [&](uint32_t most) { return largest_of_block(most); });
      } else {
        quantize_fp8(reader, loaded, args.quant != MoeQuant::kFp8, to, scales);
      }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __device__ __forceinline__ uint32_t largest_of_block(uint32_t most) const {
    most = __reduce_max_sync(kWholeWarp, most);
    if (tid % 32 == 0) shared.largest[tid / 32] = most;
    __syncthreads();
    for (int w = 0; w < threads / 32; ++w) most = max(most, shared.largest[w]);
    return most;
  }

  // --- once they have met ---

  // What all tokens need of every rank. The whole block; false if a rank does not come.
  __device__ __forceinline__ bool await_extras() const {
    Waiter waiter(view, turn.epoch);
    bool alive = true;
    if (tid == 0) shared.wrong = false;
    const int first_extra = args.moe.experts + view.nranks;
    for (int i = tid; alive && i < view.nranks * kMoeExtraWords; i += threads) {
      const int rank = i / kMoeExtraWords;
      const int word = i % kMoeExtraWords;
      uint32_t value = 0;
      alive = await_word(waiter, turn, board(rank) + first_extra + word, rank, &value);
      shared.extra[rank][word] = static_cast<int32_t>(value);
    }
    if (__syncthreads_and(alive) == 0) return false;
    if (tid < view.nranks && shared.extra[tid][kWordWrong] != 0) shared.wrong = true;
    __syncthreads();
    return true;
  }

  // How many rows the ranks before this one have for the token's experts. As await_extras().
  __device__ __forceinline__ bool await_counts() const {
    Waiter waiter(view, turn.epoch);
    bool alive = true;
    for (int i = tid; alive && i < args.topk * view.rank; i += threads) {
      const int slot = i / view.rank;
      const int rank = i % view.rank;
      const int expert = shared.expert[slot];
      if (expert < 0) continue;
      uint32_t value = 0;
      alive = await_word(waiter, turn, board(rank) + expert, rank, &value);
      shared.before[slot][rank] = static_cast<int32_t>(value);
    }
    return __syncthreads_and(alive) != 0;
  }

  // The place of each slot's row; one thread each. After a barrier.
  __device__ __forceinline__ uint32_t target_of_slot(int slot) const {
    const int expert = shared.expert[slot];
    if (expert < 0 || shared.wrong) return kNoTarget;
    const int rank = args.moe.rank_of[expert];
    const int64_t local = args.moe.local_of[expert];
    if (apart(view.rank, rank)) return kNoTarget;
    int64_t number = counts[expert];
    for (int k = 0; k < slot; ++k) number += shared.expert[k] == expert ? 1 : 0;
    for (int s = 0; s < view.rank; ++s) {
      if (!apart(s, rank)) number += shared.before[slot][s];
    }
    const int64_t capacity = shared.extra[rank][kWordCapacity];
    if (number >= capacity) return kNoTarget;
    return static_cast<uint32_t>(rank) << kTargetRowBits |
           static_cast<uint32_t>(local * capacity + number);
  }

  // Each warp has its part: the rows, their scales, their notes.
  __device__ __forceinline__ void push(int token, const char* row) const {
    const int warp = tid / 32;
    const int lane = tid % 32;
    const uint32_t to = lane < args.topk ? shared.target[lane] : kNoTarget;
    const DispatchShared& known = shared.dispatch;
    if (warp == 0) {
      const bool engine =
          to != kNoTarget && by_engine(known.outputs[target_rank(to)], args.recv_row_bytes);
      if (engine) {
        const MoeOutputs& out = known.outputs[target_rank(to)];
        push_bytes(out.rows + target_row(to) * out.stride, row,
                   static_cast<uint32_t>(args.recv_row_bytes));
      }
      commit_pushes();
      store_codes(known, engine ? kNoTarget : to, row, args.recv_row_bytes, lane);
    } else if (warp == 1) {
      put_notes(args, known, token, to, lane);
    } else if (args.num_scales > 0) {
      // Every other warp has some of the targets.
      const int parts = threads / 32 - 2;
      const uint32_t mine = lane % parts == warp - 2 ? to : kNoTarget;
      if (args.quant != MoeQuant::kNone) {
        put_scales(known, mine, args.num_scales, lane,
                   [&](int s) { return scale_word(args, scales, s); });
      } else {
        const uint32_t* const from = args.scales + token * args.scale_strides[0];
        put_scales(known, mine, args.num_scales, lane,
                   [&](int s) { return from[s * args.scale_strides[1]]; });
      }
    }
  }

  __device__ __forceinline__ bool run_tokens() const {
    int from = 0;
    int n = 0;
    for (int token = static_cast<int>(blockIdx.x); token < args.tokens;
         token += static_cast<int>(gridDim.x), ++n) {
      char* const row = rows + n % kBuffers * bytes.row;
      if (n > 0) {
        if (tid < 32) await_reads<kBuffers - 1>();  // what was sent from it
        __syncthreads();
        look_at(from, token);
        read_row(token, row);
        __syncthreads();
      }
      from = token;
      if (!await_counts()) return false;
      if (tid < args.topk) {
        shared.target[tid] = target_of_slot(tid);
        args.tables.targets[static_cast<int64_t>(token) * args.topk + tid] = shared.target[tid];
      }
      __syncthreads();
      push(token, row);
    }
    return true;
  }

  // Rows of this rank's output that no token fills; a block takes an expert at a time.
  __device__ __forceinline__ bool fill_rest() const {
    const int first = args.moe.first_place[view.rank];
    const int count = args.moe.first_place[view.rank + 1] - first;
    const int lane = tid % 32;
    Waiter waiter(view, turn.epoch);
    for (int local = static_cast<int>(blockIdx.x); local < count;
         local += static_cast<int>(gridDim.x)) {
      const int expert = args.moe.by_place[first + local];
      uint32_t here = 0;
      bool alive = true;
      if (lane < view.nranks && !shared.wrong && !apart(lane, view.rank)) {
        alive = await_word(waiter, turn, board(lane) + expert, lane, &here);
      }
      if (__all_sync(kWholeWarp, alive) == 0) return false;
      const uint32_t total = __reduce_add_sync(kWholeWarp, here);
      const int64_t begin = static_cast<int64_t>(local) * args.own.capacity;
      for (int64_t row = total + tid / 32; row < args.own.capacity; row += threads / 32) {
        fill_row(args, begin + row, lane);
      }
    }
    return true;
  }
};

template <DataType kType>
__global__ void __launch_bounds__(kMostThreads)
    route_and_dispatch(const __grid_constant__ TeamView view,
                       const __grid_constant__ RouteArgs route,
                       const __grid_constant__ DispatchArgs args, const BlockBytes bytes) {
  extern __shared__ __align__(128) char memory[];
  __shared__ JointShared shared;
  const Turn turn = begin(view);
  if (turn.ok) {
    const int tid = static_cast<int>(threadIdx.x);
    char* const after_rows = memory + kBuffers * bytes.row;
    auto* const counts = reinterpret_cast<int32_t*>(after_rows + bytes.scales);
    const Joint<kType> joint = {view,
                                route,
                                args,
                                turn,
                                shared,
                                memory,
                                reinterpret_cast<float*>(after_rows),
                                counts,
                                bytes,
                                tid,
                                static_cast<int>(blockDim.x)};
    if (joint.tells()) joint.tell(counts);
    joint.clear_counts_here();
    const int first = static_cast<int>(blockIdx.x);
    if (first < args.tokens) {
      joint.look_at(0, first);
      joint.read_row(first, memory);
    }
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (await_outputs(view, args, turn, &shared.dispatch) && joint.await_extras() &&
        joint.run_tokens() && (!args.zero_padding || joint.fill_rest())) {
      if (tid < 32) finish_pushes();
      leave(view, turn);
      // The tables are this rank's own.
      const bool told = !joint.tells() || settle_counts(view, route, turn, &shared.exchange);
      if (args.phase == MoePhase::kBoth && told) {
        await_leaving(view, turn);
      } else if (blockIdx.x == 0 && tid == 0) {
        *args.tables.sent_epoch = turn.epoch;
      }
    }
    // Shared memory is not left while it is sent from.
    if (tid < 32) finish_pushes();
  }
  __syncthreads();
  end(view, turn, 0);
}

int round_up(int value, int to) { return (value + to - 1) / to * to; }

BlockBytes bytes_of(const DispatchArgs& args, int nranks) {
  BlockBytes bytes;
  bytes.row = round_up(args.recv_row_bytes, 128);
  const int groups = (args.recv_row_bytes + kScaleGroup - 1) / kScaleGroup;
  bytes.scales = round_up(groups * static_cast<int>(sizeof(float)), 128);
  bytes.counts = moe_words(args.moe.experts, nranks) * static_cast<int>(sizeof(int32_t));
  return bytes;
}
size_t all_of(const BlockBytes& bytes) {
  return static_cast<size_t>(kBuffers) * static_cast<size_t>(bytes.row) +
         static_cast<size_t>(bytes.scales + bytes.counts);
}

template <DataType kType>
cudaError_t load_type() {
  return cudaFuncSetAttribute(route_and_dispatch<kType>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(kMostBytes));
}

}  // namespace

bool routes_and_pushes(const DispatchArgs& args, int nranks) {
  return args.layout == MoeLayout::kExpertMasked &&
         (args.quant == MoeQuant::kNone || args.recv_row_bytes <= kMostQuantizedHidden) &&
         all_of(bytes_of(args, nranks)) <= kMostBytes;
}

cudaError_t launch_moe_route_and_dispatch(const TeamView& view, const RouteArgs& route,
                                          const DispatchArgs& args, DataType type,
                                          const LaunchShape& shape) {
  const BlockBytes bytes = bytes_of(args, view.nranks);
  LaunchShape filled = shape;
  // Sixteen elements, or two packs, for each thread.
  const int parts =
      args.quant == MoeQuant::kNone ? args.row_bytes / (2 * kPackBytes) : args.recv_row_bytes / 16;
  filled.threads = std::clamp(round_up(parts, 32), kLeastThreads, kMostThreads);
  const auto run = [&](auto kernel) {
    return start(kernel, filled, all_of(bytes), view, route, args, bytes);
  };
  if (args.quant == MoeQuant::kNone) return run(route_and_dispatch<DataType::kBf16>);
  switch (type) {
    case DataType::kF32: return run(route_and_dispatch<DataType::kF32>);
    case DataType::kF16: return run(route_and_dispatch<DataType::kF16>);
    case DataType::kBf16: return run(route_and_dispatch<DataType::kBf16>);
    default: return cudaErrorInvalidValue;
  }
}

cudaError_t load_moe_low_latency() {
  for (const auto load :
       {load_type<DataType::kF32>, load_type<DataType::kF16>, load_type<DataType::kBf16>}) {
    if (const cudaError_t code = load(); code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
