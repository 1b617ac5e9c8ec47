// Reductions of any size and type through a ring of landing tiles. Bytes over the link: each slice
// once to its owner, each sum once to every target. A block works on its own tiles with the same
// block of the other ranks; in one turn it pushes tile s of every slice, reduces tile s - 1 of its
// own and stores the sum where it belongs, and publishes both with one fence. What the peers have
// read is credited with the next turn's fence. The grid is as wide as it takes to hide the flight
// of a turn behind the other blocks' turns.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/sync.cuh"

namespace zbccl::cuda {
namespace {

constexpr int kUnroll = kTilePacks;

struct Ring {
  uint64_t tile_packs;
  uint32_t depth;

  // Tile `step` of this block, from rank `from`, in rank `of`'s arena.
  __device__ __forceinline__ char* tile(const TeamView& view, int of, int from,
                                        uint64_t step) const {
    const uint64_t index =
        (static_cast<uint64_t>(blockIdx.x) * depth + step % depth) * view.nranks + from;
    return reinterpret_cast<char*>(view.control[of]) + view.shape.tiles_offset +
           index * tile_packs * kPackBytes;
  }
};

template <DataType kType, int kTeam, bool kSum>
__global__ void __launch_bounds__(512)
    chunked(const __grid_constant__ TeamView view, const __grid_constant__ ReduceArgs args) {
  constexpr int kRanks = kTeam != 0 ? kTeam : kMaxRanks;
  __shared__ Entries entries;
  const Turn turn = begin(view);
  const int me = view.rank;
  const int nranks = kTeam != 0 ? kTeam : view.nranks;
  const int tid = static_cast<int>(threadIdx.x);
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    const Ring ring = {static_cast<uint64_t>(blockDim.x) * kUnroll, args.depth};
    uint64_t longest = 0;
    for (int k = 0; k < nranks; ++k) longest = max(longest, args.bytes[k]);
    const uint64_t tile_bytes = ring.tile_packs * kPackBytes;
    const uint64_t tiles = (longest + tile_bytes - 1) / tile_bytes;
    const uint64_t steps =
        tiles > blockIdx.x ? (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x : 0;
    const uint64_t base = static_cast<uint64_t>(turn.epoch) << 32;
    Control* const own = view.control[me];
    Waiter waiter(view, turn.epoch);
    const bool peer = tid < nranks && tid != me;
    bool alive = true;

    // All loads of a turn are under way before the first store waits for one.
    constexpr int kGroup = kRanks <= 8 ? kUnroll : 1;
    const auto push = [&](uint64_t step) {
      const uint64_t first = (blockIdx.x + step * gridDim.x) * ring.tile_packs + tid;
#pragma unroll
      for (int g = 0; g < kUnroll; g += kGroup) {
        Pack v[kGroup][kRanks];
#pragma unroll
        for (int u = 0; u < kGroup; ++u) {
          const uint64_t i = first + static_cast<uint64_t>(g + u) * blockDim.x;
#pragma unroll
          for (int k = 0; k < kRanks; ++k) {
            if (k >= nranks || k == me) continue;
            const Span slice(args.in.data + args.begin[k], args.bytes[k]);
            if (i < slice.packs()) v[u][k] = slice.load(i);
          }
        }
#pragma unroll
        for (int u = 0; u < kGroup; ++u) {
          const uint64_t in_tile = static_cast<uint64_t>(g + u) * blockDim.x + tid;
          const uint64_t i = first + static_cast<uint64_t>(g + u) * blockDim.x;
#pragma unroll
          for (int k = 0; k < kRanks; ++k) {
            if (k >= nranks || k == me || i * kPackBytes >= args.bytes[k]) continue;
            store_plain(ring.tile(view, k, me, step) + in_tile * kPackBytes, v[u][k]);
          }
        }
      }
    };
    const auto reduce = [&](uint64_t step) {
      const uint64_t first = (blockIdx.x + step * gridDim.x) * ring.tile_packs + tid;
      const Span slice(args.in.data + args.begin[me], args.bytes[me]);
      const Span result(args.out.data + (args.targets != 0 ? args.begin[me] : 0), args.bytes[me]);
#pragma unroll
      for (int g = 0; g < kUnroll; g += kGroup) {
        Pack v[kGroup][kRanks];
#pragma unroll
        for (int u = 0; u < kGroup; ++u) {
          const uint64_t in_tile = static_cast<uint64_t>(g + u) * blockDim.x + tid;
          const uint64_t i = first + static_cast<uint64_t>(g + u) * blockDim.x;
          if (i >= slice.packs()) continue;
#pragma unroll
          for (int k = 0; k < kRanks; ++k) {
            if (k >= nranks) continue;
            v[u][k] = k == me ? slice.load(i)
                              : load_volatile(ring.tile(view, me, k, step) + in_tile * kPackBytes);
          }
        }
#pragma unroll
        for (int u = 0; u < kGroup; ++u) {
          const uint64_t i = first + static_cast<uint64_t>(g + u) * blockDim.x;
          if (i >= slice.packs()) continue;
          const Pack sum =
              reduce_packs<kType, kRanks, kSum>(v[u], nranks, static_cast<RedOp>(args.op));
          if (args.targets == 0) {
            result.store(i, sum);
            continue;
          }
#pragma unroll
          for (int k = 0; k < kRanks; ++k) {
            if (k >= nranks || (args.targets >> k & 1) == 0) continue;
            if (k == me) {
              result.store(i, sum);
            } else {
              Span(entries.out[k] + args.begin[me], args.bytes[me]).store(i, sum);
            }
          }
        }
      }
    };

    // The first tiles may go before anybody's call is known: they land in the library's memory,
    // which every rank has left by now.
    if (steps > 0) push(0);
    alive = check_entry(view, args.call, turn, &entries);
    if (alive) {
      find_buffers(view, &entries);
      if (peer) store_release(&view.control[tid]->steps[blockIdx.x][me], base | 1);
    }
    for (uint64_t s = 1; alive && s <= steps; ++s) {
      // Tile s goes where tile s - depth was; tile s - 1 is reduced.
      bool came = true;
      if (peer) {
        came = await_step(waiter, &own->steps[blockIdx.x][tid], base | s, tid, kAtStep);
        if (came && s < steps && s >= args.depth) {
          came = await_step(waiter, &own->credits[blockIdx.x][tid], base | (s - args.depth + 1),
                            tid, kAtCredit);
        }
      }
      alive = __syncthreads_and(came) != 0;
      if (!alive) break;
      if (s < steps) push(s);
      reduce(s - 1);
      __syncthreads();
      if (peer && s < steps) {
        fence_system();
        store_relaxed(&view.control[tid]->steps[blockIdx.x][me], base | (s + 1));
        store_relaxed(&view.control[tid]->credits[blockIdx.x][me], base | s);
      }
    }
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (alive) meet_at_exit(view, turn);
  }
  __syncthreads();
  end(view, turn, 0);
}

}  // namespace

cudaError_t launch_chunked(const TeamView& view, const ReduceArgs& args, DataType type,
                           const LaunchShape& shape) {
  return choose_instance<false>(type, view.nranks, static_cast<RedOp>(args.op),
                                [&]<DataType kType, int kTeam, bool kSum>() {
                                  return start(chunked<kType, kTeam, kSum>, shape, 0, view, args);
                                });
}

cudaError_t load_chunked() {
  cudaFuncAttributes attributes;
  return for_each_instance<false>([&]<DataType kType, int kTeam, bool kSum>() {
    return cudaFuncGetAttributes(&attributes, chunked<kType, kTeam, kSum>);
  });
}

}  // namespace zbccl::cuda
