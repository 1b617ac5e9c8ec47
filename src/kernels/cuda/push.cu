// Pushes by stores. Bytes over the link: each block once. Two meetings: an output is written only
// once its owner has come, and nobody leaves before his output is complete. Tiles rotate over the
// peers, beginning with the next rank, so that no two ranks crowd one port.
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/push.h"

namespace zbccl::cuda {
namespace {

constexpr int kUnroll = 4;
constexpr int kMeetThreads = 512;

__global__ void __launch_bounds__(512)
    push(const __grid_constant__ TeamView view, const __grid_constant__ PushArgs args) {
  __shared__ Entries entries;
  const Turn turn = begin(view);
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (check_entry(view, args.call, turn, &entries)) {
      find_buffers(view, &entries);
      const uint64_t tile_bytes = static_cast<uint64_t>(blockDim.x) * kUnroll * kPackBytes;
      const uint64_t tiles = (args.longest + tile_bytes - 1) / tile_bytes;
      // Where some pair disagrees nothing is written, and the wait at the exit ends with the news.
      const uint64_t items = tallies_agree(view, entries) ? tiles * view.nranks : 0;
      for (uint64_t item = blockIdx.x; item < items; item += gridDim.x) {
        const int k = (view.rank + 1 + static_cast<int>(item % view.nranks)) % view.nranks;
        const uint64_t at = item / view.nranks * tile_bytes;
        if (at >= args.bytes[k]) continue;
        char* const to = k == view.rank ? args.out.data + args.own_to : entries.out[k];
        const char* const from = args.in.data + args.from[k];
        if (to == from) continue;
        copy_tile<kUnroll>(to + at, from + at, min(tile_bytes, args.bytes[k] - at));
      }
      meet_at_exit(view, turn);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

__global__ void __launch_bounds__(kMeetThreads)
    meet(const __grid_constant__ TeamView view, const __grid_constant__ EntryCall call) {
  __shared__ Entries entries;
  const Turn turn = begin(view);
  if (turn.ok) {
    clear_previous_slot(view, turn, threadIdx.x, blockDim.x);
    // What copy engines have written on behalf of this stream is there before the entry is.
    fence_system();
    send_entry(view, call, turn, static_cast<int>(threadIdx.x));
    (void)check_entry(view, call, turn, &entries);
  }
  __syncthreads();
  end(view, turn, 0);
}

// The root's tiles go to their first owners, who pass them on as they come: each rank, the root
// included, sends the buffer about once.
__global__ void __launch_bounds__(512)
    relay(const __grid_constant__ TeamView view, const __grid_constant__ RelayArgs args) {
  __shared__ Entries entries;
  const Turn turn = begin(view);
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    bool alive = check_entry(view, args.call, turn, &entries);
    if (alive) {
      find_buffers(view, &entries);
      const int me = view.rank;
      const int tid = static_cast<int>(threadIdx.x);
      const uint64_t tile_bytes = static_cast<uint64_t>(blockDim.x) * kPackBytes;
      const auto owners = static_cast<uint64_t>(view.nranks - 1);
      // A share is a number of whole tiles; the rank `i` places after the root has the i-th.
      const uint64_t tiles = (args.bytes + tile_bytes - 1) / tile_bytes;
      const uint64_t share = (tiles + owners - 1) / owners;
      const uint64_t steps =
          share > blockIdx.x ? (share - blockIdx.x + gridDim.x - 1) / gridDim.x : 0;
      const uint64_t base = static_cast<uint64_t>(turn.epoch) << 32;
      const auto owner = [&](uint64_t i) {
        return static_cast<int>((args.root + 1 + i) % static_cast<uint64_t>(view.nranks));
      };
      const auto place = [&](uint64_t i, uint64_t step) {
        return (i * share + blockIdx.x + step * gridDim.x) * tile_bytes;
      };
      const auto part = [&](uint64_t at) {
        return at < args.bytes ? min(tile_bytes, args.bytes - at) : 0;
      };
      if (me == args.root) {
        for (uint64_t s = 0; s < steps; ++s) {
          for (uint64_t i = 0; i < owners; ++i) {
            const uint64_t at = place(i, s);
            if (part(at) == 0) continue;
            copy_tile<1>(entries.out[owner(i)] + at, args.in.data + at, part(at));
          }
          __syncthreads();
          if (tid < view.nranks && tid != me) {
            store_release(&view.control[tid]->steps[blockIdx.x][me], base | (s + 1));
          }
        }
        if (args.in.data != args.out.data) {
          for (uint64_t at = blockIdx.x * tile_bytes; at < args.bytes;
               at += gridDim.x * tile_bytes) {
            copy_tile<1>(args.out.data + at, args.in.data + at, part(at));
          }
        }
      } else {
        const auto mine = static_cast<uint64_t>(me - args.root - 1 + view.nranks) %
                          static_cast<uint64_t>(view.nranks);
        Waiter waiter(view, turn.epoch);
        for (uint64_t s = 0; alive && s < steps; ++s) {
          bool came = true;
          if (tid == 0) {
            came = await_step(waiter, &view.control[me]->steps[blockIdx.x][args.root],
                              base | (s + 1), args.root, kAtStep);
          }
          alive = __syncthreads_and(came) != 0;
          const uint64_t at = place(mine, s);
          if (!alive || part(at) == 0) continue;
          for (uint64_t i = 1; i < owners; ++i) {
            const int to = owner((mine + i) % owners);
            copy_tile<1>(entries.out[to] + at, args.out.data + at, part(at));
          }
        }
      }
      if (alive) meet_at_exit(view, turn);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

// Each tile comes from the rank before, unless this is the root, and goes to the rank behind,
// unless this is the last.
__global__ void __launch_bounds__(512)
    chain(const __grid_constant__ TeamView view, const __grid_constant__ RelayArgs args) {
  __shared__ Entries entries;
  const Turn turn = begin(view);
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    bool alive = check_entry(view, args.call, turn, &entries);
    if (alive) {
      find_buffers(view, &entries);
      const int me = view.rank;
      const int before = (me + view.nranks - 1) % view.nranks;
      const int behind = (me + 1) % view.nranks;
      const bool is_root = me == args.root;
      const bool is_last = behind == args.root;
      const uint64_t base = static_cast<uint64_t>(turn.epoch) << 32;
      const uint64_t tile = static_cast<uint64_t>(blockDim.x) * kUnroll * kPackBytes;
      Waiter waiter(view, turn.epoch);
      uint64_t step = 0;
      for (uint64_t at = blockIdx.x * tile; alive && at < args.bytes; at += gridDim.x * tile) {
        ++step;
        if (!is_root) {
          bool came = true;
          if (threadIdx.x == 0) {
            came = await_step(waiter, &view.control[me]->steps[blockIdx.x][before], base | step,
                              before, kAtStep);
          }
          alive = __syncthreads_and(came) != 0;
          if (!alive) break;
        }
        const uint64_t bytes = min(tile, args.bytes - at);
        const char* const from = (is_root ? args.in.data : args.out.data) + at;
        if (!is_last) {
          copy_tile<kUnroll>(entries.out[behind] + at, from, bytes);
          __syncthreads();
          if (threadIdx.x == 0) {
            store_release(&view.control[behind]->steps[blockIdx.x][me], base | step);
          }
        }
        if (is_root && args.in.data != args.out.data) {
          copy_tile<kUnroll>(args.out.data + at, from, bytes);
        }
      }
      if (alive) meet_at_exit(view, turn);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

}  // namespace

cudaError_t launch_push(const TeamView& view, const PushArgs& args, const LaunchShape& shape) {
  return start(push, shape, 0, view, args);
}

cudaError_t launch_meet(const TeamView& view, const EntryCall& call, cudaStream_t stream) {
  LaunchShape shape;
  shape.threads = kMeetThreads;
  shape.stream = stream;
  shape.overlap = false;
  return start(meet, shape, 0, view, call);
}

cudaError_t launch_relay(const TeamView& view, const RelayArgs& args, const LaunchShape& shape) {
  return start(args.chain ? chain : relay, shape, 0, view, args);
}

static cudaError_t load_relay() {
  cudaFuncAttributes attributes;
  cudaError_t code = cudaFuncGetAttributes(&attributes, relay);
  if (code == cudaSuccess) code = cudaFuncGetAttributes(&attributes, meet);
  return code != cudaSuccess ? code : cudaFuncGetAttributes(&attributes, chain);
}
cudaError_t load_push_bulk();
cudaError_t load_push_inline();
cudaError_t load_ring();
cudaError_t load_swap();

cudaError_t load_pushes() {
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, push);
  if (code != cudaSuccess) return code;
  for (const auto load : {load_relay, load_push_bulk, load_push_inline, load_ring, load_swap}) {
    if (const cudaError_t loaded = load(); loaded != cudaSuccess) return loaded;
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
