// One-shot reductions. Bytes over the link: each slice once to its owner (all_reduce: the input to
// every peer). One flight, no flag, no fence: the data is polled. The grid is as wide as there are
// packs, because what counts at these sizes is the latency of a load, a flight and a store.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/reduce.h"

namespace zbccl::cuda {
namespace {

template <DataType kType, int kTeam, bool kSum>
__global__ void __launch_bounds__(512)
    one_shot(const __grid_constant__ TeamView view, const __grid_constant__ ReduceArgs args) {
  using V = Vec<kType>;
  constexpr int kRanks = kTeam != 0 ? kTeam : kMaxRanks;
  __shared__ Entries entries;
  const Turn turn = begin(view);
  const int me = view.rank;
  const int nranks = kTeam != 0 ? kTeam : view.nranks;
  const uint64_t first = blockIdx.x * blockDim.x + threadIdx.x;
  const uint64_t stride = gridDim.x * blockDim.x;
  const Span mine(nullptr, args.bytes[me]);
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry<false>(view, args.call, turn);
    char* slots[kRanks];
#pragma unroll
    for (int k = 0; k < kRanks; ++k) {
      if (k < nranks) slots[k] = poison_slot(view, k, turn.slot);
    }
    if (args.whole) {
      const Span in(args.in.data, args.in.bytes);
      const uint64_t place = static_cast<uint64_t>(me) * in.packs();
      for (uint64_t i = first; i < in.packs(); i += stride) {
        const Pack v = V::without_poison(in.load(i));
#pragma unroll
        for (int k = 0; k < kRanks; ++k) {
          if (k < nranks) store_volatile(slots[k] + (place + i) * kPackBytes, v);
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < kRanks; ++k) {
        if (k >= nranks) continue;
        const Span in(args.in.data + args.begin[k], args.bytes[k]);
        const uint64_t place = static_cast<uint64_t>(me) * in.packs();
        for (uint64_t i = first; i < in.packs(); i += stride) {
          store_volatile(slots[k] + (place + i) * kPackBytes, V::without_poison(in.load(i)));
        }
      }
    }
    clear_previous_slot(view, turn);
    if (check_entry<false>(view, args.call, turn, &entries)) {
      const Span out(args.out.data, args.bytes[me]);
      const char* const landed = poison_slot(view, me, turn.slot);
      Waiter waiter(view, turn.epoch);
      for (uint64_t i = first; i < out.packs(); i += stride) {
        Pack packs[kRanks];
        if (!await_packs<kType>(waiter, landed + i * kPackBytes, out.packs() * kPackBytes, nranks,
                                -1, packs)) {
          break;
        }
        out.store(i, reduce_packs<kType, kRanks, kSum>(packs, nranks, static_cast<RedOp>(args.op)));
      }
    }
  }
  __syncthreads();
  end(view, turn, static_cast<uint32_t>(mine.packs() * nranks));
}

}  // namespace

cudaError_t launch_one_shot(const TeamView& view, const ReduceArgs& args, DataType type,
                            const LaunchShape& shape) {
  return choose_instance<true>(type, view.nranks, static_cast<RedOp>(args.op),
                               [&]<DataType kType, int kTeam, bool kSum>() {
                                 return start(one_shot<kType, kTeam, kSum>, shape, 0, view, args);
                               });
}

cudaError_t load_one_shot() {
  cudaFuncAttributes attributes;
  return for_each_instance<true>([&]<DataType kType, int kTeam, bool kSum>() {
    return cudaFuncGetAttributes(&attributes, one_shot<kType, kTeam, kSum>);
  });
}

}  // namespace zbccl::cuda
