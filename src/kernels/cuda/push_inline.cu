// Small blocks, one flight: what a rank stores is four bytes beside the epoch, twice in 16 bytes,
// so that a receiver sees what has come without a flag or a fence. Twice the bytes over the link,
// and a copy from landing memory to the output, against two meetings. Two areas take turns: a rank
// enters an operation only after every other has entered the one before.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/push.h"

namespace zbccl::cuda {
namespace {

constexpr uint64_t kUnit = 8;  // bytes of payload in a pack

__device__ __forceinline__ char* inline_area(const TeamView& view, int rank, uint32_t epoch,
                                             int from) {
  const uint64_t index = (epoch & 1) * static_cast<uint64_t>(view.nranks) + from;
  return reinterpret_cast<char*>(view.control[rank]) + view.shape.inline_offset +
         index * view.shape.inline_bytes;
}

__device__ __forceinline__ uint64_t units(uint64_t bytes) { return (bytes + kUnit - 1) / kUnit; }

__device__ __forceinline__ Pack load_unit(const char* from, uint64_t bytes, uint64_t i,
                                          uint32_t epoch) {
  const char* const at = from + i * kUnit;
  uint64_t value = 0;
  if ((reinterpret_cast<uint64_t>(at) & (kUnit - 1)) == 0 && (i + 1) * kUnit <= bytes) {
    value = *reinterpret_cast<const volatile uint64_t*>(at);
  } else {
    for (uint64_t b = 0; b < kUnit && i * kUnit + b < bytes; ++b) {
      value |= static_cast<uint64_t>(static_cast<unsigned char>(at[b])) << (8 * b);
    }
  }
  return {{static_cast<uint32_t>(value), epoch, static_cast<uint32_t>(value >> 32), epoch}};
}

__device__ __forceinline__ void store_unit(char* to, uint64_t bytes, uint64_t i, const Pack& v) {
  char* const at = to + i * kUnit;
  const uint64_t value = static_cast<uint64_t>(v.w[2]) << 32 | v.w[0];
  if ((reinterpret_cast<uint64_t>(at) & (kUnit - 1)) == 0 && (i + 1) * kUnit <= bytes) {
    *reinterpret_cast<uint64_t*>(at) = value;
  } else {
    for (uint64_t b = 0; b < kUnit && i * kUnit + b < bytes; ++b) {
      at[b] = static_cast<char>(value >> (8 * b));
    }
  }
}

__global__ void __launch_bounds__(256)
    push_inline(const __grid_constant__ TeamView view, const __grid_constant__ PushArgs args) {
  __shared__ Entries entries;
  const Turn turn = begin(view);
  const int me = view.rank;
  const uint64_t first = blockIdx.x * blockDim.x + threadIdx.x;
  const uint64_t stride = gridDim.x * blockDim.x;
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    for (int step = 1; step < view.nranks; ++step) {
      const int k = (me + step) % view.nranks;
      char* const area = inline_area(view, k, turn.epoch, me);
      const uint64_t count = units(args.bytes[k]);
      for (uint64_t i = first; i < count; i += stride) {
        store_volatile(area + i * kPackBytes,
                       load_unit(args.in.data + args.from[k], args.bytes[k], i, turn.epoch));
      }
    }
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    // In place, a block that is still to be sent may not be overwritten: every thread has sent its
    // part of every block when the barrier in here is over, and other threads' parts are not its
    // own to write.
    if (check_entry(view, args.call, turn, &entries)) {
      char* const own = args.out.data + args.own_to;
      const char* const source = args.in.data + args.from[me];
      if (own != source) {
        for (uint64_t i = first; i < units(args.bytes[me]); i += stride) {
          store_unit(own, args.bytes[me], i, load_unit(source, args.bytes[me], i, 0));
        }
      }
      Waiter waiter(view, turn.epoch);
      bool alive = true;
      for (int step = 1; alive && step < view.nranks; ++step) {
        const int k = (me + step) % view.nranks;
        const char* const area = inline_area(view, me, turn.epoch, k);
        const uint64_t bytes = args.call.expected[k];
        for (uint64_t i = first; alive && i < units(bytes); i += stride) {
          Pack v;
          for (;;) {
            v = load_volatile(area + i * kPackBytes);
            if (v.w[1] == turn.epoch && v.w[3] == turn.epoch) break;
            alive = waiter.again(static_cast<uint32_t>(k), kAtData, turn.epoch, v.w[1]);
            if (!alive) break;
          }
          if (alive) store_unit(args.out.data + args.to[k], bytes, i, v);
        }
      }
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

}  // namespace

cudaError_t launch_push_inline(const TeamView& view, const PushArgs& args,
                               const LaunchShape& shape) {
  return start(push_inline, shape, 0, view, args);
}

cudaError_t load_push_inline() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, push_inline);
}

}  // namespace zbccl::cuda
