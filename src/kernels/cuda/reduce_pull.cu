// Reduce-scatter of registered inputs. Bytes over the link: each slice once, read by its owner; the
// result goes straight to its place and nothing lands. Two meetings: nobody reads before the input
// is there, nobody leaves before his input has been read.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/reduce.h"

namespace zbccl::cuda {
namespace {

template <DataType kType, int kTeam, bool kSum>
__global__ void __launch_bounds__(512)
    pull(const __grid_constant__ TeamView view, const __grid_constant__ ReduceArgs args) {
  constexpr int kRanks = kTeam != 0 ? kTeam : kMaxRanks;
  constexpr int kUnroll = kRanks <= 4 ? 2 : 1;
  __shared__ Entries entries;
  const Turn turn = begin(view);
  const int me = view.rank;
  const int nranks = kTeam != 0 ? kTeam : view.nranks;
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (check_entry(view, args.call, turn, &entries)) {
      find_buffers(view, &entries);
      const Span out(args.out.data, args.bytes[me]);
      const uint64_t packs = out.packs();
      const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
      const auto input = [&](int k) {
        const char* const data = k == me ? args.in.data : entries.in[k];
        return Span(const_cast<char*>(data) + args.begin[me], args.bytes[me]);
      };
      for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride * kUnroll) {
        Pack v[kUnroll][kRanks];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
          for (int k = 0; k < kRanks; ++k) {
            if (k < nranks && i + u * stride < packs) v[u][k] = input(k).load(i + u * stride);
          }
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (i + u * stride >= packs) break;
          const Pack sum =
              reduce_packs<kType, kRanks, kSum>(v[u], nranks, static_cast<RedOp>(args.op));
          out.store(i + u * stride, sum);
          if (!args.spread) continue;
#pragma unroll
          for (int k = 1; k < kRanks; ++k) {
            if (k >= nranks) break;
            const int peer = me + k < nranks ? me + k : me + k - nranks;
            Span(entries.out[peer] + args.begin[me], args.bytes[me]).store(i + u * stride, sum);
          }
        }
      }
      meet_at_exit(view, turn);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

}  // namespace

cudaError_t launch_pull(const TeamView& view, const ReduceArgs& args, DataType type,
                        const LaunchShape& shape) {
  return choose_instance<false>(type, view.nranks, static_cast<RedOp>(args.op),
                                [&]<DataType kType, int kTeam, bool kSum>() {
                                  return start(pull<kType, kTeam, kSum>, shape, 0, view, args);
                                });
}

cudaError_t load_pull() {
  cudaFuncAttributes attributes;
  return for_each_instance<false>([&]<DataType kType, int kTeam, bool kSum>() {
    return cudaFuncGetAttributes(&attributes, pull<kType, kTeam, kSum>);
  });
}

}  // namespace zbccl::cuda
