// Two-shot all_reduce by sum of aligned floats in equal slices, a pack of its rank's slice for each
// thread. As reduce_two_shot.cu without `direct`, in the fewest instructions. Bytes over the link:
// 2 (N-1)/N of the input each way.
#include "kernels/cuda/lean.cuh"

namespace zbccl::cuda {
namespace {

template <DataType kType, int kRanks>
__global__ void __launch_bounds__(kMostWorkers + kHeralds)
    two_packs(const __grid_constant__ TeamView view, const __grid_constant__ ReduceArgs args) {
  using V = Vec<kType>;
  const Worker worker;
  const auto packs = static_cast<uint32_t>(args.in.bytes / kPackBytes);
  const uint32_t part = packs / kRanks;
  const uint32_t i = worker.number;
  const bool mine = worker.works && i < part;
  const Herald<kRanks> herald(view, args.call, kRanks);
  const int me = view.rank;
  const Beginning beginning = wait_to_begin(view);
  Pack v[kRanks];
  if (mine) {
#pragma unroll
    for (int k = 0; k < kRanks; ++k) {
      v[k] = load_plain(args.in.data + uint64_t{i + static_cast<uint32_t>(k) * part} * kPackBytes);
    }
  }
  const Turn turn = begin(view, beginning);
  int wrong = turn.ok ? 0 : 1;
  const uint32_t slot = slot_offset(view, turn);
  const uint32_t own = slot + (static_cast<uint32_t>(me) * part + i) * kPackBytes;
  const uint32_t to_sums = packs * kPackBytes;  // the sums lie behind the slices
  const uint64_t stride = uint64_t{part} * kPackBytes;
  const char* const landed = arena_of(view, me) + slot + i * kPackBytes;
  Waiter waiter(view, turn.epoch);
  Pack sum{};
  if (turn.ok && !worker.works) {
    herald.show(turn.epoch);
    wrong = herald.watch(turn.epoch);
  }
  if (turn.ok && mine) {
#pragma unroll
    for (int k = 0; k < kRanks; ++k) {
      store_volatile(arena_of(view, k) + own, V::without_poison(v[k]));
    }
    if (await_packs<kType>(waiter, landed, stride, kRanks, -1, v)) {
      sum = reduce_packs<kType, kRanks, true>(v, kRanks, RedOp::kSum);
#pragma unroll
      for (int k = 0; k < kRanks; ++k) {
        if (k != me) store_volatile(arena_of(view, k) + own + to_sums, sum);
      }
    } else {
      wrong = 1;
    }
  }
  if (turn.ok && worker.works) clear_previous_slot(view, turn, i, worker.stride);
  // Nothing is written before data and entries are there; and the block has read its state.
  const bool agreed = __syncthreads_or(wrong) == 0;
  end(view, turn, 2 * packs);
  if (!mine || !agreed) return;
  char* const out = args.out.data + uint64_t{i} * kPackBytes;
  store_plain(out + static_cast<uint64_t>(me) * stride, sum);
  if (!await_packs<kType>(waiter, landed + to_sums, stride, kRanks, me, v)) return;
#pragma unroll
  for (int k = 0; k < kRanks; ++k) {
    if (k != me) store_plain(out + static_cast<uint64_t>(k) * stride, v[k]);
  }
}

}  // namespace

bool launch_two_packs(const TeamView& view, const ReduceArgs& args, DataType type,
                      const LaunchShape& shape, cudaError_t* code) {
  const uint64_t slice = args.in.bytes / static_cast<uint64_t>(view.nranks);
  const bool fits = !args.direct && static_cast<RedOp>(args.op) == RedOp::kSum &&
                    shape.threads <= kMostWorkers && slice > 0 && is_aligned(args.in) &&
                    is_aligned({args.out.data, slice}) &&
                    slice * static_cast<uint64_t>(view.nranks) == args.in.bytes &&
                    slice <= workers_of(shape) * kPackBytes;
  if (!fits) return false;
  return with_lean_instance(type, view.nranks, [&]<DataType kType, int kRanks>() {
    *code = start(two_packs<kType, kRanks>, with_heralds(shape), 0, view, args);
  });
}

cudaError_t load_two_packs() {
  return for_each_lean_instance([&]<DataType kType, int kRanks>() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, two_packs<kType, kRanks>);
  });
}

}  // namespace zbccl::cuda
