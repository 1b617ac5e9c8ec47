// One-shot reductions. Bytes over the link: each slice once to its owner (all_reduce: the input to
// every peer). One flight, no flag, no fence: the data is polled. The grid is as wide as there are
// packs, because what counts at these sizes is the latency of a load, a flight and a store.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/reduce.h"

namespace zbccl::cuda {
namespace {

// This worker's part of what the rank gives to everybody. `first`: its first pack of the whole.
template <DataType kType, int kTeam, int kRanks>
__device__ __forceinline__ void give(const TeamView& view, const ReduceArgs& args, const Turn& turn,
                                     const Crew& crew, int nranks, const Pack& first) {
  using V = Vec<kType>;
  char* slots[kRanks];
#pragma unroll
  for (int k = 0; k < kRanks; ++k) {
    if (k < nranks) slots[k] = poison_slot(view, k, turn.slot);
  }
  const auto me = static_cast<uint64_t>(view.rank);
  if (args.whole) {
    const Span in(args.in.data, args.in.bytes);
    const uint64_t packs = in.packs();
    for (uint64_t i = crew.first; i < packs; i += crew.stride) {
      const Pack v = V::without_poison(i == crew.first ? first : in.load(i));
#pragma unroll
      for (int k = 0; k < kRanks; ++k) {
        if (k < nranks) store_volatile(slots[k] + (me * packs + i) * kPackBytes, v);
      }
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kRanks; ++k) {
    if (k >= nranks) continue;
    const Span in(args.in.data + args.begin[k], args.bytes[k]);
    const uint64_t packs = in.packs();
    for (uint64_t i = crew.first; i < packs; i += crew.stride) {
      store_volatile(slots[k] + (me * packs + i) * kPackBytes, V::without_poison(in.load(i)));
    }
  }
}

template <DataType kType, int kTeam, bool kSum>
__global__ void __launch_bounds__(640)
    one_shot(const __grid_constant__ TeamView view, const __grid_constant__ ReduceArgs args) {
  constexpr int kRanks = kTeam != 0 ? kTeam : kMaxRanks;
  __shared__ Entries entries;
  const Beginning beginning = wait_to_begin(view);
  const int me = view.rank;
  const int nranks = kTeam != 0 ? kTeam : view.nranks;
  const Crew crew(nranks);
  // Under way while the state of the team is.
  Pack first{};
  if (args.whole && crew.works && uint64_t{crew.first} * kPackBytes < args.in.bytes) {
    first = Span(args.in.data, args.in.bytes).load(crew.first);
  }
  const Turn turn = begin(view, beginning);
  const Span out(args.out.data, args.bytes[me]);
  const uint64_t packs = out.packs();
  if (turn.ok) {
    const char* const landed = poison_slot(view, me, turn.slot);
    Waiter waiter(view, turn.epoch);
    Pack v[kRanks];
    int wrong = 0;
    bool alive = crew.works && crew.first < packs;
    if (crew.works) {
      give<kType, kTeam, kRanks>(view, args, turn, crew, nranks, first);
      clear_previous_slot(view, turn, crew.first, crew.stride);
      if (alive) {
        alive = await_packs<kType>(waiter, landed + crew.first * kPackBytes, packs * kPackBytes,
                                   nranks, -1, v);
      }
    } else {
      if (blockIdx.x == 0) send_entry(view, args.call, turn, crew.thread);
      wrong = watch_entry<false>(view, args.call, turn, &entries, crew.thread);
    }
    // The first pack of each thread is there about when the entries are; nothing is written before
    // both.
    if (agree(view, args.call, turn, entries, wrong)) {
      for (uint64_t i = crew.first; alive;) {
        out.store(i, reduce_packs<kType, kRanks, kSum>(v, nranks, static_cast<RedOp>(args.op)));
        i += crew.stride;
        alive = i < packs && await_packs<kType>(waiter, landed + i * kPackBytes, packs * kPackBytes,
                                                nranks, -1, v);
      }
    }
  }
  __syncthreads();
  end(view, turn, static_cast<uint32_t>(packs * nranks));
}

}  // namespace

cudaError_t launch_one_shot(const TeamView& view, const ReduceArgs& args, DataType type,
                            const LaunchShape& shape) {
  cudaError_t code = cudaSuccess;
  if (launch_one_pack(view, args, type, shape, &code)) return code;
  LaunchShape crewed = shape;
  crewed.threads += watchers(view.nranks);
  return choose_instance<true>(type, view.nranks, static_cast<RedOp>(args.op),
                               [&]<DataType kType, int kTeam, bool kSum>() {
                                 return start(one_shot<kType, kTeam, kSum>, crewed, 0, view, args);
                               });
}

cudaError_t load_one_shot() {
  cudaFuncAttributes attributes;
  return for_each_instance<true>([&]<DataType kType, int kTeam, bool kSum>() {
    return cudaFuncGetAttributes(&attributes, one_shot<kType, kTeam, kSum>);
  });
}

}  // namespace zbccl::cuda
