// all_reduce, residual and RMSNorm of many rows. Each rank has a share of the rows: it adds them
// up, normalises them and stores the results in every rank's outputs. Bytes over the link: the
// input once, (N-1)/N of it, and (N-1)/N of every output. Rows land in their owners' poison memory,
// where they are polled, and the blocks meet once; or, `pull`, owners read them where they are,
// after the entry. A block has whole rows, as many as the grid leaves it.
#include <algorithm>

#include "kernels/cuda/norm_launch.cuh"
#include "kernels/cuda/poison.cuh"

namespace zbccl::cuda {
namespace {

constexpr int kLeastThreads = kMaxBlocks;

// Everyone's outputs as this GPU reaches them: its own first, then those of the ranks behind it, so
// that no two ranks crowd one port.
struct Targets {
  NormTarget of[kMaxRanks];
};

// By the watchers of one block. Where this rank's outputs are does not fit into its entry.
__device__ __forceinline__ void send_places(const TeamView& view, const NormArgs& args,
                                            const Turn& turn, int thread, int threads) {
  for (int i = thread; i < view.nranks * kPlaceWords; i += threads) {
    const Place& place = args.places[i % kPlaceWords / 2];
    const uint64_t value = i % 2 == 0 ? place.high : place.low;
    store_relaxed(
        &view.control[i / kPlaceWords]->places[turn.epoch & 1][view.rank][i % kPlaceWords],
        value << 32 | turn.epoch);
  }
}

__device__ __forceinline__ bool await_word(const TeamView& view, const Turn& turn, Waiter& waiter,
                                           int rank, int word, uint32_t* value) {
  const uint64_t* const from = &view.control[view.rank]->places[turn.epoch & 1][rank][word];
  for (;;) {
    const uint64_t seen = load_acquire(from);
    *value = static_cast<uint32_t>(seen >> 32);
    if (static_cast<uint32_t>(seen) == turn.epoch) return true;
    if (!waiter.again(static_cast<uint32_t>(rank), kAtEntry, turn.epoch,
                      static_cast<uint32_t>(seen))) {
      return false;
    }
  }
}

// The whole block, after the entries agree. False if a rank has failed meanwhile.
__device__ __forceinline__ bool find_targets(const TeamView& view, const NormArgs& args,
                                             const Turn& turn, Waiter& waiter, Targets* targets) {
  bool alive = true;
  const int all = view.nranks * kNormOutputs;
  for (int i = static_cast<int>(threadIdx.x); alive && i < all; i += static_cast<int>(blockDim.x)) {
    const int step = i / kNormOutputs;
    const int rank = (view.rank + step) % view.nranks;
    const int output = i % kNormOutputs;
    void** const to = &targets->of[step].data[output];
    if (rank == view.rank) {
      *to = args.own.data[output];
      continue;
    }
    uint32_t high = 0;
    uint32_t low = 0;
    alive = await_word(view, turn, waiter, rank, 2 * output, &high) &&
            await_word(view, turn, waiter, rank, 2 * output + 1, &low);
    if (!alive || high >> 16 == kNoSegment) {
      *to = nullptr;
      continue;
    }
    *to = reinterpret_cast<void*>(segment_base(view, rank, high >> 16) +
                                  (static_cast<uint64_t>(high & 0xffff) << 32 | low));
  }
  return __syncthreads_and(alive) != 0;
}

template <DataType kType, int kTeam, int kPacks>
__global__ void __launch_bounds__(640, 1)
    norm_shares(const __grid_constant__ TeamView view, const __grid_constant__ NormArgs args) {
  using V = Vec<kType>;
  constexpr int kRanks = kTeam != 0 ? kTeam : kMaxRanks;
  extern __shared__ float shared[];
  __shared__ Entries entries;
  __shared__ Targets targets;
  const Turn turn = begin(view);
  const int me = view.rank;
  const int nranks = kTeam != 0 ? kTeam : view.nranks;
  const Crew crew(nranks);
  const auto row_packs = static_cast<int64_t>(args.spec.hidden / 8);
  const int64_t share = norm_share(args.tokens, nranks);
  const int64_t slice = share * row_packs;  // packs that one rank leaves at another
  if (turn.ok) {
    RowNorm<kType, kPacks> norm(args.spec, shared, crew.workers);
    const char* const landed = poison_slot(view, me, turn.slot);
    Waiter waiter(view, turn.epoch);
    int wrong = 0;
    if (crew.works) {
      for (int64_t i = blockIdx.x; !args.pull && i < share; i += gridDim.x) {
#pragma unroll(kTeam != 0 ? kTeam : 1)
        for (int k = 0; k < kRanks; ++k) {
          if (k >= nranks || k * share + i >= args.tokens) continue;
          char* const to =
              poison_slot(view, k, turn.slot) + (me * slice + i * row_packs) * kPackBytes;
          const char* const from = args.x + (k * share + i) * row_packs * kPackBytes;
#pragma unroll
          for (int j = 0; j < kPacks; ++j) {
            if (!norm.mine(j)) continue;
            const int64_t at = static_cast<int64_t>(norm.index(j)) * kPackBytes;
            store_volatile(to + at, V::without_poison(load_plain(from + at)));
          }
        }
      }
      clear_previous_slot(view, turn, crew.first, crew.stride);
    } else {
      if (blockIdx.x == 0) {
        send_entry(view, args.call, turn, crew.thread);
        send_places(view, args, turn, crew.thread, watchers(nranks));
      }
      wrong = watch_entry(view, args.call, turn, &entries, crew.thread);
    }
    if (agree(view, args.call, turn, entries, wrong)) {
      if (args.pull) find_buffers(view, &entries);
      bool alive = find_targets(view, args, turn, waiter, &targets);
      const int64_t end_of_mine = min(args.tokens, (me + 1) * share);
      for (int64_t row = me * share + blockIdx.x; alive && row < end_of_mine; row += gridDim.x) {
        Pack x[kPacks];
        norm.prefetch(row);
        bool came = true;
#pragma unroll
        for (int j = 0; j < kPacks; ++j) {
          if (!came || !norm.mine(j)) continue;
          if (args.pull) {
            const int64_t at = (row * row_packs + norm.index(j)) * kPackBytes;
            const auto get = [&](int k, Pack* v) {
              *v = load_plain((k == me ? args.x : entries.in[k]) + at);
              return true;
            };
            const auto get_all = [&](auto& v) {
#pragma unroll
              for (int k = 0; k < kRanks; ++k) (void)get(k, &v[k]);
              return true;
            };
            (void)sum_packs<kType, kTeam>(nranks, &x[j], get, get_all);
          } else {
            const int64_t i = (row - me * share) * row_packs + norm.index(j);
            came = sum_landed<kType, kTeam>(waiter, landed + i * kPackBytes, slice * kPackBytes,
                                            nranks, &x[j]);
          }
        }
        alive = __syncthreads_and(came) != 0;
        if (alive) norm.finish(x, row, targets.of, nranks);
      }
      if (alive) meet_at_exit(view, turn);
    }
  }
  __syncthreads();
  end(view, turn, args.pull ? 0 : static_cast<uint32_t>(slice * nranks));
}

}  // namespace

cudaError_t launch_norm_shares(const TeamView& view, const NormArgs& args, DataType type,
                               const LaunchShape& shape) {
  LaunchShape crewed = shape;
  crewed.threads += watchers(view.nranks);
  const size_t bytes = static_cast<size_t>(norm_shared_floats(args.spec.hidden)) * sizeof(float);
  return choose_norm(type, view.nranks, args.spec.hidden,
                     [&]<DataType kType, int kTeam, int kPacks>() {
                       return start(norm_shares<kType, kTeam, kPacks>, crewed, bytes, view, args);
                     });
}

// As few packs for each thread as choose_norm() takes, in whole warps. A block of a grid of one
// advances all copies of the epoch (end() in sync.cuh).
int norm_threads(int hidden) {
  const int packs = hidden / 8;
  const int each = packs <= kNormThreads ? 1 : packs <= 2 * kNormThreads ? 2 : 4;
  return std::max((packs + 32 * each - 1) / (32 * each) * 32, kLeastThreads);
}

cudaError_t load_norm_one_shot();
cudaError_t load_quantized();

cudaError_t load_fused() {
  cudaFuncAttributes attributes;
  const cudaError_t code = for_each_norm([&]<DataType kType, int kTeam, int kPacks>() {
    return cudaFuncGetAttributes(&attributes, norm_shares<kType, kTeam, kPacks>);
  });
  if (code != cudaSuccess) return code;
  for (const auto load : {load_norm_one_shot, load_quantized}) {
    if (const cudaError_t loaded = load(); loaded != cudaSuccess) return loaded;
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
