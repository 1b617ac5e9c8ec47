// The first half of an all_reduce whose order of summation is not the library's: each slice goes
// once around a ring of neighbours and each rank adds its own part, so that the sum of slice q
// begins with rank q + 1 and is rounded to the type at every rank. Bytes over the link: each slice
// once, to one neighbour. Tiles land in a ring of landing memory with credits. A block has two
// tiles under way in turn, so that the flight of one is behind the work on the other; it never
// waits for a tile or a credit of its own step, and so ranks cannot wait for each other in a
// circle.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/reduce.h"

namespace zbccl::cuda {
namespace {

constexpr int kUnroll = kRingTilePacks;
constexpr uint64_t kColumns = 2;  // tiles of a slice that take turns
static_assert(kRingDepth == 2 * kColumns);

template <DataType kType, bool kSum>
__global__ void __launch_bounds__(512)
    ring_sums(const __grid_constant__ TeamView view, const __grid_constant__ ReduceArgs args) {
  using V = Vec<kType>;
  __shared__ Entries entries;
  const Turn turn = begin(view);
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    bool alive = check_entry(view, args.call, turn, &entries);
    const int me = view.rank;
    const int nranks = view.nranks;
    const int before = (me + nranks - 1) % nranks;
    const int behind = (me + 1) % nranks;
    const int tid = static_cast<int>(threadIdx.x);
    constexpr int kCreditor = 32;  // the thread that deals with credits, in a warp of its own
    const auto op = static_cast<RedOp>(args.op);
    const RedOp part = kSum || op == RedOp::kAvg ? RedOp::kSum : op;
    const RedOp whole = kSum ? RedOp::kSum : op;
    Control* const own = view.control[me];
    const uint64_t base = static_cast<uint64_t>(turn.epoch) << 32;
    const uint64_t tile_packs = static_cast<uint64_t>(blockDim.x) * kUnroll;
    const uint64_t tile_bytes = tile_packs * kPackBytes;
    uint64_t longest = 0;
    for (int k = 0; k < nranks; ++k) longest = max(longest, args.bytes[k]);
    const uint64_t tiles = (longest + tile_bytes - 1) / tile_bytes;
    const uint64_t columns =
        tiles > blockIdx.x ? (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x : 0;
    const auto landing = [&](int rank, uint64_t index) {
      return reinterpret_cast<char*>(view.control[rank]) + view.shape.tiles_offset +
             (static_cast<uint64_t>(blockIdx.x) * kRingDepth + index % kRingDepth) * tile_bytes;
    };
    uint64_t sent = 0;
    uint64_t come = 0;
    // One tile of slice q: what has come is added to this rank's own and goes on, or stays.
    const auto pass_on = [&](int q, uint64_t tile, bool first, bool last) {
      bool ready = true;
      if (tid == 0 && !first) {
        Waiter waiter(view, turn.epoch);
        ready =
            await_step(waiter, &own->steps[blockIdx.x][before], base | (come + 1), before, kAtStep);
      }
      if (tid == kCreditor && !last && sent >= kRingDepth) {
        Waiter waiter(view, turn.epoch);
        ready = await_step(waiter, &own->credits[blockIdx.x][behind],
                           base | (sent - kRingDepth + 1), behind, kAtCredit);
      }
      if (__syncthreads_and(ready) == 0) return false;
      const Span slice(args.in.data + args.begin[q], args.bytes[q]);
      const Span result(args.out.data, args.bytes[me]);
      const char* const landed = landing(me, come);
      char* const there = landing(behind, sent);
      Pack mine[kUnroll];
      Pack sum[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const uint64_t in_tile = static_cast<uint64_t>(u) * blockDim.x + threadIdx.x;
        const uint64_t i = tile * tile_packs + in_tile;
        if (i >= slice.packs()) continue;
        mine[u] = slice.load(i);
        if (!first) sum[u] = load_volatile(landed + in_tile * kPackBytes);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const uint64_t in_tile = static_cast<uint64_t>(u) * blockDim.x + threadIdx.x;
        const uint64_t i = tile * tile_packs + in_tile;
        if (i >= slice.packs()) continue;
        if (first) {
          sum[u] = mine[u];
        } else {
          typename V::Sum total;
          V::first(total, sum[u]);
          V::add(total, mine[u], whole);
          sum[u] = V::finish(total, last ? whole : part, nranks);
        }
        if (last) {
          result.store(i, sum[u]);
        } else {
          store_plain(there + in_tile * kPackBytes, sum[u]);
        }
      }
      __syncthreads();
      if (!last) ++sent;
      if (!first) ++come;
      if (tid == 0 && !last) {
        store_release(&view.control[behind]->steps[blockIdx.x][me], base | sent);
      }
      if (tid == kCreditor && !first) {
        store_release(&view.control[before]->credits[blockIdx.x][me], base | come);
      }
      return true;
    };
    for (uint64_t column = 0; alive && column < columns; column += kColumns) {
      for (int step = 0; alive && step < nranks; ++step) {
        const int q = (me - 1 - step + 2 * nranks) % nranks;
        for (uint64_t c = column; alive && c < min(column + kColumns, columns); ++c) {
          alive = pass_on(q, blockIdx.x + c * gridDim.x, step == 0, step == nranks - 1);
        }
      }
    }
    if (alive) meet_at_exit(view, turn);
  }
  __syncthreads();
  end(view, turn, 0);
}

}  // namespace

cudaError_t launch_ring_sums(const TeamView& view, const ReduceArgs& args, DataType type,
                             const LaunchShape& shape) {
  // An instance for sums of each common type; for other numbers of ranks it would be the same.
  return choose_instance<false>(type, 2, static_cast<RedOp>(args.op),
                                [&]<DataType kType, int kTeam, bool kSum>() {
                                  return start(ring_sums<kType, kSum>, shape, 0, view, args);
                                });
}

cudaError_t load_ring_sums() {
  cudaFuncAttributes attributes;
  return for_each_instance<false>([&]<DataType kType, int kTeam, bool kSum>() {
    return cudaFuncGetAttributes(&attributes, ring_sums<kType, kSum>);
  });
}

}  // namespace zbccl::cuda
