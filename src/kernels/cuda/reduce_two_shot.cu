// Two-shot all_reduce. Bytes over the link: 2 (N-1)/N of the input each way. Two flights without a
// flag: slices to their owners and sums to everybody, both through poison memory; or, `direct`, the
// sums straight into registered outputs, after which the blocks meet once. Slice q of the slot
// belongs to rank q; the sums lie behind the slices.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/reduce.h"

namespace zbccl::cuda {
namespace {

// The packs of the input and of its slices.
struct Parts {
  uint64_t packs;  // of the input
  uint64_t part;   // of a slice; the last ones may have fewer
  __device__ __forceinline__ Parts(uint64_t all, int nranks)
      : packs(all), part((all + nranks - 1) / nranks) {}
  __device__ __forceinline__ uint64_t at(int rank, uint64_t i) const {
    return static_cast<uint64_t>(rank) * part + i;
  }
  __device__ __forceinline__ uint64_t slot() const { return part * kPackBytes; }
};

template <DataType kType, int kTeam, bool kSum>
__global__ void __launch_bounds__(640)
    two_shot(const __grid_constant__ TeamView view, const __grid_constant__ ReduceArgs args) {
  using V = Vec<kType>;
  constexpr int kRanks = kTeam != 0 ? kTeam : kMaxRanks;
  __shared__ Entries entries;
  const Beginning beginning = wait_to_begin(view);
  const int me = view.rank;
  const int nranks = kTeam != 0 ? kTeam : view.nranks;
  const Crew crew(nranks);
  const Span in(args.in.data, args.in.bytes);
  const Span out(args.out.data, args.in.bytes);
  const Parts parts(in.packs(), nranks);
  Pack v[kRanks];
  const auto load_parts = [&](uint64_t i) {
#pragma unroll
    for (int k = 0; k < kRanks; ++k) {
      if (k < nranks && parts.at(k, i) < parts.packs) v[k] = in.load(parts.at(k, i));
    }
  };
  // Under way while the state of the team is.
  if (crew.works && crew.first < parts.part) load_parts(crew.first);
  const Turn turn = begin(view, beginning);
  const uint64_t sums = parts.part * nranks;  // where the sums begin in a slot
  if (turn.ok) {
    char* slots[kRanks];
#pragma unroll
    for (int k = 0; k < kRanks; ++k) {
      if (k < nranks) slots[k] = poison_slot(view, k, turn.slot);
    }
    const char* const landed = poison_slot(view, me, turn.slot);
    const auto mine = parts.at(me, 0) < parts.packs ? min(parts.part, parts.packs - parts.at(me, 0))
                                                    : uint64_t{0};  // packs that this rank reduces
    Waiter waiter(view, turn.epoch);
    int wrong = 0;
    bool alive = true;
    if (crew.works) {
      for (uint64_t i = crew.first; i < parts.part; i += crew.stride) {
        if (i != crew.first) load_parts(i);
#pragma unroll
        for (int k = 0; k < kRanks; ++k) {
          if (k < nranks && parts.at(k, i) < parts.packs) {
            store_volatile(slots[k] + parts.at(me, i) * kPackBytes, V::without_poison(v[k]));
          }
        }
      }
      if (crew.first < mine) {
        alive = await_packs<kType>(waiter, landed + crew.first * kPackBytes, parts.slot(), nranks,
                                   -1, v);
      }
    } else {
      if (blockIdx.x == 0) send_entry(view, args.call, turn, crew.thread);
      wrong = watch_entry<false>(view, args.call, turn, &entries, crew.thread);
    }
    const bool agreed = agree(view, args.call, turn, entries, wrong);
    if (agreed && args.direct) find_buffers(view, &entries);
    if (agreed && crew.works) {
      for (uint64_t i = crew.first; alive && i < mine; i += crew.stride) {
        if (i != crew.first) {
          alive = await_packs<kType>(waiter, landed + i * kPackBytes, parts.slot(), nranks, -1, v);
          if (!alive) break;
        }
        const Pack sum = reduce_packs<kType, kRanks, kSum>(v, nranks, static_cast<RedOp>(args.op));
        const uint64_t at = parts.at(me, i);
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
      clear_previous_slot(view, turn, crew.first, crew.stride);
      for (uint64_t i = crew.first; alive && !args.direct && i < parts.part; i += crew.stride) {
        // The last slices may be short of packs, and stay poison there.
        int present = nranks;
        while (present > 0 && parts.at(present - 1, i) >= parts.packs) --present;
        alive = await_packs<kType>(waiter, landed + (sums + i) * kPackBytes, parts.slot(), present,
                                   me, v);
        if (!alive) break;
#pragma unroll
        for (int k = 0; k < kRanks; ++k) {
          if (k < present && k != me) out.store(parts.at(k, i), v[k]);
        }
      }
    }
    if (agreed && args.direct) meet_at_exit(view, turn);
  }
  __syncthreads();
  end(view, turn, static_cast<uint32_t>(args.direct ? sums : 2 * sums));
}

}  // namespace

cudaError_t launch_two_shot(const TeamView& view, const ReduceArgs& args, DataType type,
                            const LaunchShape& shape) {
  cudaError_t code = cudaSuccess;
  if (launch_two_packs(view, args, type, shape, &code)) return code;
  LaunchShape crewed = shape;
  crewed.threads += watchers(view.nranks);
  return choose_instance<true>(type, view.nranks, static_cast<RedOp>(args.op),
                               [&]<DataType kType, int kTeam, bool kSum>() {
                                 return start(two_shot<kType, kTeam, kSum>, crewed, 0, view, args);
                               });
}

cudaError_t load_two_shot() {
  cudaFuncAttributes attributes;
  return for_each_instance<true>([&]<DataType kType, int kTeam, bool kSum>() {
    return cudaFuncGetAttributes(&attributes, two_shot<kType, kTeam, kSum>);
  });
}

}  // namespace zbccl::cuda
