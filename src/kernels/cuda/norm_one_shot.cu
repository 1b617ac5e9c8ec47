// all_reduce, residual and RMSNorm of few rows. Bytes over the link: the input to every peer. One
// flight, no flag, no fence: rows land in poison memory and are polled. Every rank normalises all
// rows. A block has whole rows, because a row's elements meet in the norm; so a thread has one pack
// of every rank at a time, up to 4,096 elements in a row.
#include "kernels/cuda/norm_launch.cuh"
#include "kernels/cuda/poison.cuh"

namespace zbccl::cuda {
namespace {

template <DataType kType, int kTeam, int kPacks>
__global__ void __launch_bounds__(640, 1)
    norm_one_shot(const __grid_constant__ TeamView view, const __grid_constant__ NormArgs args) {
  using V = Vec<kType>;
  constexpr int kRanks = kTeam != 0 ? kTeam : kMaxRanks;
  extern __shared__ float shared[];
  __shared__ Entries entries;
  const Turn turn = begin(view);
  const int me = view.rank;
  const int nranks = kTeam != 0 ? kTeam : view.nranks;
  const Crew crew(nranks);
  const auto row_packs = static_cast<int64_t>(args.spec.hidden / 8);
  const int64_t packs = args.tokens * row_packs;  // of the input
  if (turn.ok) {
    RowNorm<kType, kPacks> norm(args.spec, shared, crew.workers);
    const char* const landed = poison_slot(view, me, turn.slot);
    Waiter waiter(view, turn.epoch);
    Pack x[kPacks];
    // This thread's packs of a row, of all ranks, added up.
    const auto await_row = [&](int64_t row) {
#pragma unroll
      for (int j = 0; j < kPacks; ++j) {
        if (!norm.mine(j)) continue;
        const char* const at = landed + (row * row_packs + norm.index(j)) * kPackBytes;
        if (!sum_landed<kType, kTeam>(waiter, at, packs * kPackBytes, nranks, &x[j])) return false;
      }
      return true;
    };
    int wrong = 0;
    bool alive = true;
    int64_t row = blockIdx.x;
    if (crew.works) {
      for (int64_t given = blockIdx.x; given < args.tokens; given += gridDim.x) {
#pragma unroll
        for (int j = 0; j < kPacks; ++j) {
          if (!norm.mine(j)) continue;
          const int64_t at = (given * row_packs + norm.index(j)) * kPackBytes;
          const Pack v = V::without_poison(load_plain(args.x + at));
#pragma unroll(kTeam != 0 ? kTeam : 1)
          for (int k = 0; k < kRanks; ++k) {
            if (k >= nranks) break;
            store_volatile(poison_slot(view, k, turn.slot) + me * packs * kPackBytes + at, v);
          }
        }
      }
      clear_previous_slot(view, turn, crew.first, crew.stride);
      if (row < args.tokens) {
        norm.prefetch(row);
        alive = await_row(row);
      }
    } else {
      if (blockIdx.x == 0) send_entry(view, args.call, turn, crew.thread);
      wrong = watch_entry(view, args.call, turn, &entries, crew.thread);
    }
    // The first row is there about when the entries are; nothing is written before both.
    if (agree(view, args.call, turn, entries, wrong)) {
      while (row < args.tokens && __syncthreads_and(alive) != 0) {
        norm.finish(x, row, &args.own, 1);
        row += gridDim.x;
        if (row >= args.tokens) break;
        norm.prefetch(row);
        alive = await_row(row);
      }
    }
  }
  __syncthreads();
  end(view, turn, static_cast<uint32_t>(packs * nranks));
}

}  // namespace

cudaError_t launch_norm_one_shot(const TeamView& view, const NormArgs& args, DataType type,
                                 const LaunchShape& shape) {
  LaunchShape crewed = shape;
  crewed.threads += watchers(view.nranks);
  const size_t bytes = static_cast<size_t>(norm_shared_floats(args.spec.hidden)) * sizeof(float);
  return choose_norm(type, view.nranks, args.spec.hidden,
                     [&]<DataType kType, int kTeam, int kPacks>() {
                       return start(norm_one_shot<kType, kTeam, kPacks>, crewed, bytes, view, args);
                     });
}

cudaError_t load_norm_one_shot() {
  cudaFuncAttributes attributes;
  return for_each_norm([&]<DataType kType, int kTeam, int kPacks>() {
    return cudaFuncGetAttributes(&attributes, norm_one_shot<kType, kTeam, kPacks>);
  });
}

}  // namespace zbccl::cuda
