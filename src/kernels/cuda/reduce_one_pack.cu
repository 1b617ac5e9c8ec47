// One-shot reductions by sum of aligned floats, a pack of the result for each thread: what a model
// does after every layer while it generates. As reduce_one_shot.cu, with nothing in the way of one
// load, one flight and one store. Bytes over the link: each slice once to its owner (all_reduce:
// the input to every peer).
#include "kernels/cuda/lean.cuh"

namespace zbccl::cuda {
namespace {

// `kWhole`: an all_reduce, else a reduce_scatter of equal slices.
template <DataType kType, int kRanks, bool kWhole>
__global__ void __launch_bounds__(kMostWorkers + kHeralds)
    one_pack(const __grid_constant__ TeamView view, const __grid_constant__ ReduceArgs args) {
  using V = Vec<kType>;
  constexpr int kInputs = kWhole ? 1 : kRanks;
  const Worker worker;
  const auto packs = static_cast<uint32_t>(args.out.bytes / kPackBytes);
  const uint32_t i = worker.number;
  const bool mine = worker.works && i < packs;
  const Herald<kRanks> herald(view, args.call, kRanks);
  const Beginning beginning = wait_to_begin(view);
  Pack v[kRanks];
  if (mine) {
#pragma unroll
    for (int k = 0; k < kInputs; ++k) {
      v[k] = load_plain(args.in.data + uint64_t{i + static_cast<uint32_t>(k) * packs} * kPackBytes);
    }
  }
  const Turn turn = begin(view, beginning);
  int wrong = turn.ok ? 0 : 1;
  if (turn.ok && !worker.works) {
    herald.show(turn.epoch);
    wrong = herald.watch(turn.epoch);
  }
  if (turn.ok && worker.works) {
    const uint32_t slot = slot_offset(view, turn);
    if (mine) {
      const uint32_t to = slot + (static_cast<uint32_t>(view.rank) * packs + i) * kPackBytes;
#pragma unroll
      for (int k = 0; k < kInputs; ++k) v[k] = V::without_poison(v[k]);
#pragma unroll
      for (int k = 0; k < kRanks; ++k) {
        store_volatile(arena_of(view, k) + to, v[kWhole ? 0 : k]);
      }
    }
    clear_previous_slot(view, turn, i, worker.stride);
    if (mine) {
      Waiter waiter(view, turn.epoch);
      const char* const landed = arena_of(view, view.rank) + slot + i * kPackBytes;
      if (!await_packs<kType>(waiter, landed, uint64_t{packs} * kPackBytes, kRanks, -1, v)) {
        wrong = 1;
      }
    }
  }
  // Nothing is written before data and entries are there; and the block has read its state.
  const bool agreed = __syncthreads_or(wrong) == 0;
  end(view, turn, packs * kRanks);
  if (mine && agreed) {
    store_plain(args.out.data + uint64_t{i} * kPackBytes,
                reduce_packs<kType, kRanks, true>(v, kRanks, RedOp::kSum));
  }
}

bool has_equal_slices(const ReduceArgs& args, int nranks) {
  for (int k = 0; k < nranks; ++k) {
    const uint64_t begin = args.whole ? 0 : static_cast<uint64_t>(k) * args.out.bytes;
    if (args.bytes[k] != args.out.bytes || args.begin[k] != begin) return false;
  }
  return true;
}

}  // namespace

bool launch_one_pack(const TeamView& view, const ReduceArgs& args, DataType type,
                     const LaunchShape& shape, cudaError_t* code) {
  const bool fits = static_cast<RedOp>(args.op) == RedOp::kSum && shape.threads <= kMostWorkers &&
                    args.out.bytes > 0 && is_aligned(args.in) && is_aligned(args.out) &&
                    has_equal_slices(args, view.nranks) &&
                    args.out.bytes <= workers_of(shape) * kPackBytes;
  if (!fits) return false;
  return with_lean_instance(type, view.nranks, [&]<DataType kType, int kRanks>() {
    *code = start(args.whole ? one_pack<kType, kRanks, true> : one_pack<kType, kRanks, false>,
                  with_heralds(shape), 0, view, args);
  });
}

cudaError_t load_one_pack() {
  return for_each_lean_instance([&]<DataType kType, int kRanks>() {
    cudaFuncAttributes attributes;
    const cudaError_t code = cudaFuncGetAttributes(&attributes, one_pack<kType, kRanks, true>);
    return code != cudaSuccess ? code
                               : cudaFuncGetAttributes(&attributes, one_pack<kType, kRanks, false>);
  });
}

}  // namespace zbccl::cuda
