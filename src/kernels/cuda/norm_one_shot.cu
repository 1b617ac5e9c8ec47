// all_reduce, residual and RMSNorm of few rows. Bytes over the link: the input to every peer. One
// flight, no flag, no fence: rows land in poison memory and are polled. Every rank normalises all
// rows. A block has whole rows, because a row's elements meet in the norm; so a thread has one pack
// of every rank at a time, up to 4,096 elements in a row.
#include "kernels/cuda/lean.cuh"
#include "kernels/cuda/norm_launch.cuh"

namespace zbccl::cuda {
namespace {

template <DataType kType, int kTeam, int kPacks>
__global__ void __launch_bounds__(kMostWorkers + kHeralds, 1)
    norm_one_shot(const __grid_constant__ TeamView view, const __grid_constant__ NormArgs args) {
  using V = Vec<kType>;
  constexpr int kRanks = kTeam != 0 ? kTeam : kMaxRanks;
  extern __shared__ float shared[];
  const Worker worker;
  const int nranks = kTeam != 0 ? kTeam : view.nranks;
  // What lands is small: 32 bits count its packs.
  const auto rows = static_cast<uint32_t>(args.tokens);
  const auto row_packs = static_cast<uint32_t>(args.spec.hidden / 8);
  const uint32_t packs = rows * row_packs;  // of the input
  uint32_t row = blockIdx.x;
  const Herald<kRanks> herald(view, args.call, nranks);
  const Beginning beginning = wait_to_begin(view);
  RowNorm<kType, kPacks> norm(args.spec, shared, worker.of_block);
  const auto pack_at = [&](uint32_t of_row, int j) {
    return (of_row * row_packs + static_cast<uint32_t>(norm.index(j))) * kPackBytes;
  };
  // Under way while the state of the team is.
  Pack x[kPacks];
  if (row < rows) {
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      if (norm.mine(j)) x[j] = load_plain(args.x + pack_at(row, j));
    }
    norm.prefetch(row);
  }
  const Turn turn = begin(view, beginning);
  const uint32_t slot = slot_offset(view, turn);
  Waiter waiter(view, turn.epoch);
  // This thread's packs of a row, of all ranks, added up.
  const auto await_row = [&](uint32_t of_row) {
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      if (!norm.mine(j)) continue;
      const char* const landed = arena_of(view, view.rank) + slot + pack_at(of_row, j);
      if (!sum_landed<kType, kTeam>(waiter, landed, int64_t{packs} * kPackBytes, nranks, &x[j])) {
        return false;
      }
    }
    return true;
  };
  int wrong = turn.ok ? 0 : 1;
  if (turn.ok && !worker.works) {
    herald.show(turn.epoch);
    wrong = herald.watch(turn.epoch);
  }
  if (turn.ok && worker.works) {
    const uint32_t own = slot + static_cast<uint32_t>(view.rank) * packs * kPackBytes;
    for (uint32_t given = row; given < rows; given += gridDim.x) {
#pragma unroll
      for (int j = 0; j < kPacks; ++j) {
        if (!norm.mine(j)) continue;
        const uint32_t at = pack_at(given, j);
        const Pack v = V::without_poison(given == row ? x[j] : load_plain(args.x + at));
#pragma unroll(kTeam != 0 ? kTeam : 1)
        for (int k = 0; k < kRanks; ++k) {
          if (k >= nranks) break;
          store_volatile(arena_of(view, k) + own + at, v);
        }
      }
    }
    clear_previous_slot(view, turn, worker.number, worker.stride);
    if (row < rows && !await_row(row)) wrong = 1;
  }
  // Nothing is written before the first row and the entries are there; and the block has read its
  // state.
  bool alive = __syncthreads_or(wrong) == 0;
  end(view, turn, packs * static_cast<uint32_t>(nranks));
  while (alive && row < rows) {
    norm.finish(x, row, &args.own, 1);
    row += gridDim.x;
    if (row >= rows) break;
    norm.prefetch(row);
    alive = __syncthreads_and(await_row(row)) != 0;
  }
}

}  // namespace

cudaError_t launch_norm_one_shot(const TeamView& view, const NormArgs& args, DataType type,
                                 const LaunchShape& shape) {
  const size_t bytes = static_cast<size_t>(norm_shared_floats(args.spec.hidden)) * sizeof(float);
  return choose_norm(
      type, view.nranks, args.spec.hidden, [&]<DataType kType, int kTeam, int kPacks>() {
        return start(norm_one_shot<kType, kTeam, kPacks>, with_heralds(shape), bytes, view, args);
      });
}

cudaError_t load_norm_one_shot() {
  cudaFuncAttributes attributes;
  return for_each_norm([&]<DataType kType, int kTeam, int kPacks>() {
    return cudaFuncGetAttributes(&attributes, norm_one_shot<kType, kTeam, kPacks>);
  });
}

}  // namespace zbccl::cuda
