// Two-shot all_reduce. Bytes over the link: 2 (N-1)/N of the input each way. Two flights without a
// flag: slices to their owners and sums to everybody, both through poison memory; or, `direct`, the
// sums straight into registered outputs, after which the blocks meet once. Slice q of the slot
// belongs to rank q; the sums lie behind the slices.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/reduce.h"

namespace zbccl::cuda {
namespace {

template <DataType kType, int kTeam, bool kSum>
__global__ void __launch_bounds__(512)
    two_shot(const __grid_constant__ TeamView view, const __grid_constant__ ReduceArgs args) {
  using V = Vec<kType>;
  constexpr int kRanks = kTeam != 0 ? kTeam : kMaxRanks;
  __shared__ Entries entries;
  const Turn turn = begin(view);
  const int me = view.rank;
  const int nranks = kTeam != 0 ? kTeam : view.nranks;
  const uint64_t first = blockIdx.x * blockDim.x + threadIdx.x;
  const uint64_t stride = gridDim.x * blockDim.x;
  const Span in(args.in.data, args.in.bytes);
  const Span out(args.out.data, args.in.bytes);
  const uint64_t packs = in.packs();
  const uint64_t part = (packs + nranks - 1) / nranks;  // packs of a slice
  const uint64_t sums = part * nranks;                  // where the sums begin
  if (turn.ok) {
    if (blockIdx.x == 0) {
      if (args.direct) {
        send_entry<true>(view, args.call, turn);
      } else {
        send_entry<false>(view, args.call, turn);
      }
    }
    char* slots[kRanks];
#pragma unroll
    for (int k = 0; k < kRanks; ++k) {
      if (k < nranks) slots[k] = poison_slot(view, k, turn.slot);
    }
    for (uint64_t i = first; i < part; i += stride) {
      Pack v[kRanks];
#pragma unroll
      for (int k = 0; k < kRanks; ++k) {
        const uint64_t at = static_cast<uint64_t>(k) * part + i;
        if (k < nranks && at < packs) v[k] = V::without_poison(in.load(at));
      }
#pragma unroll
      for (int k = 0; k < kRanks; ++k) {
        const uint64_t at = static_cast<uint64_t>(k) * part + i;
        if (k < nranks && at < packs) {
          store_volatile(slots[k] + (static_cast<uint64_t>(me) * part + i) * kPackBytes, v[k]);
        }
      }
    }
    const bool agreed = check_entry<true>(view, args.call, turn, &entries);
    if (agreed && args.direct) find_buffers(view, &entries);
    if (agreed) {
      const char* const landed = poison_slot(view, me, turn.slot);
      Waiter waiter(view, turn.epoch);
      bool alive = true;
      for (uint64_t i = first; alive && i < part; i += stride) {
        const uint64_t at = static_cast<uint64_t>(me) * part + i;
        if (at >= packs) break;
        Pack v[kRanks];
        alive =
            await_packs<kType>(waiter, landed + i * kPackBytes, part * kPackBytes, nranks, -1, v);
        if (!alive) break;
        const Pack sum = reduce_packs<kType, kRanks, kSum>(v, nranks, static_cast<RedOp>(args.op));
#pragma unroll
        for (int k = 0; k < kRanks; ++k) {
          if (k >= nranks || k == me) continue;
          if (args.direct) {
            Span(entries.out[k], in.bytes).store(at, sum);
          } else {
            store_volatile(slots[k] + (sums + at) * kPackBytes, sum);
          }
        }
        out.store(at, sum);
      }
      clear_previous_slot(view, turn);
      if (args.direct) {
        meet_at_exit(view, turn);
      } else if (alive) {
        for (uint64_t i = first; i < part; i += stride) {
          Pack v[kRanks];
          // The last slices may be short of packs, and stay poison there.
          int present = nranks;
          while (present > 0 && (present - 1) * part + i >= packs) --present;
          if (!await_packs<kType>(waiter, landed + (sums + i) * kPackBytes, part * kPackBytes,
                                  present, me, v)) {
            break;
          }
#pragma unroll
          for (int k = 0; k < kRanks; ++k) {
            if (k < present && k != me) out.store(static_cast<uint64_t>(k) * part + i, v[k]);
          }
        }
      }
    }
  }
  __syncthreads();
  end(view, turn, static_cast<uint32_t>(args.direct ? sums : 2 * sums));
}

}  // namespace

cudaError_t launch_two_shot(const TeamView& view, const ReduceArgs& args, DataType type,
                            const LaunchShape& shape) {
  return choose_instance<true>(type, view.nranks, static_cast<RedOp>(args.op),
                               [&]<DataType kType, int kTeam, bool kSum>() {
                                 return start(two_shot<kType, kTeam, kSum>, shape, 0, view, args);
                               });
}

cudaError_t load_two_shot() {
  cudaFuncAttributes attributes;
  return for_each_instance<true>([&]<DataType kType, int kTeam, bool kSum>() {
    return cudaFuncGetAttributes(&attributes, two_shot<kType, kTeam, kSum>);
  });
}

}  // namespace zbccl::cuda
