// Every rank's slice goes around a ring of neighbours, to the same place in everybody's output.
// Bytes over the link: all slices but one, to one neighbour, which a switch carries better than
// pieces for everybody. Two meetings, and a flag for each piece. A block sends its pieces of one
// slice after the other and a slice on after it has come, which it did while the one before was
// sent; so nobody waits but for the first piece. Nothing lands, and no order of anything depends on
// it.
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/push.h"

namespace zbccl::cuda {
namespace {

constexpr int kUnroll = 4;

__global__ void __launch_bounds__(512)
    ring(const __grid_constant__ TeamView view, const __grid_constant__ RingArgs args) {
  __shared__ Entries entries;
  const Turn turn = begin(view);
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    bool alive = check_entry(view, args.call, turn, &entries);
    if (alive) {
      find_buffers(view, &entries);
      const int me = view.rank;
      const int nranks = view.nranks;
      const int before = (me + nranks - 1) % nranks;
      const int behind = (me + 1) % nranks;
      const uint64_t base = static_cast<uint64_t>(turn.epoch) << 32;
      const uint64_t stride = gridDim.x * args.piece;
      uint64_t sent = 0;
      uint64_t come = 0;
      for (int step = 0; alive && step < nranks - 1; ++step) {
        const int q = (me - step + nranks) % nranks;
        const uint64_t place = args.begin[q];
        const char* const from = step == 0 ? args.own : args.out + place;
        for (uint64_t at = blockIdx.x * args.piece; at < args.bytes[q]; at += stride) {
          const uint64_t bytes = min(args.piece, args.bytes[q] - at);
          if (step > 0) {
            bool came = true;
            if (threadIdx.x == 0) {
              Waiter waiter(view, turn.epoch);
              came = await_step(waiter, &view.control[me]->steps[blockIdx.x][before],
                                base | (come + 1), before, kAtStep);
            }
            ++come;
            alive = __syncthreads_and(came) != 0;
            if (!alive) break;
          }
          copy_tile<kUnroll>(entries.out[behind] + place + at, from + at, bytes);
          ++sent;
          __syncthreads();
          if (threadIdx.x == 0) {
            store_release(&view.control[behind]->steps[blockIdx.x][me], base | sent);
          }
          if (step == 0 && from != args.out + place) {
            copy_tile<kUnroll>(args.out + place + at, from + at, bytes);
          }
        }
      }
      // The last slice has come when the rank before has come here.
      if (alive) meet_at_exit(view, turn);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

}  // namespace

cudaError_t launch_ring(const TeamView& view, const RingArgs& args, const LaunchShape& shape) {
  return start(ring, shape, 0, view, args);
}

cudaError_t load_ring() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, ring);
}

}  // namespace zbccl::cuda
