// Bytes over the bus: each once, each way. 8 blocks fill it. Waits sleep between looks, and end by
// the host's word, which it gives whatever fails.
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/courier.h"
#include "kernels/cuda/launch.cuh"

namespace zbccl::cuda {
namespace {

constexpr int kThreads = 512;
constexpr uint32_t kNapNanoseconds = 500;

// The whole block. Waits until the host has come to `wanted` pieces of this leg; false: it will
// not.
__device__ bool await_host(const CourierView& view, const CourierLeg& leg, const uint64_t* word,
                           uint32_t wanted) {
  bool came = false;
  if (threadIdx.x == 0) {
    for (;;) {
      // Before the count: what the host did for the leg, it did before it was over.
      const bool is_over = static_cast<int32_t>(load_acquire(&view.words->over) - leg.number) >= 0;
      const uint64_t seen = load_acquire(word);
      came =
          static_cast<uint32_t>(seen >> 32) == leg.number && static_cast<uint32_t>(seen) >= wanted;
      if (came || is_over) break;
      __nanosleep(kNapNanoseconds);
    }
  }
  return __syncthreads_or(came) != 0;
}

// carry(data, slot, bytes, i) for the block's pieces, its i-th each time, until one says false.
template <typename Carry>
__device__ void for_each_piece(const CourierView& view, const CourierLeg& leg, Carry&& carry) {
  uint64_t piece = 0;
  uint32_t i = 0;
  for (int r = 0; r < leg.count; ++r) {
    for (uint64_t at = 0; at < leg.bytes[r]; at += kCourierPiece, ++piece) {
      if (piece % gridDim.x != blockIdx.x) continue;
      char* const data = leg.data[r] + at;
      const uint64_t slot = blockIdx.x * kCourierDepth + i % kCourierDepth;
      char* const there =
          view.slots + slot * kCourierSlot + (reinterpret_cast<uint64_t>(data) & (kPackBytes - 1));
      if (!carry(data, there, min(uint64_t{kCourierPiece}, leg.bytes[r] - at), i)) return;
      ++i;
    }
  }
}

// After the block's accesses to a slot.
__device__ void tell_host(uint64_t* word, const CourierLeg& leg, uint32_t pieces) {
  __syncthreads();
  if (threadIdx.x != 0) return;
  fence_system();
  store_release(word, static_cast<uint64_t>(leg.number) << 32 | pieces);
}

__global__ void __launch_bounds__(kThreads)
    lift(const __grid_constant__ CourierView view, const __grid_constant__ CourierLeg leg) {
  CourierWords* const words = view.words;
  if (blockIdx.x == 0 && threadIdx.x == 0) store_release(&words->begun, leg.number);
  for_each_piece(view, leg, [&](const char* data, char* slot, uint64_t bytes, uint32_t i) {
    if (i >= kCourierDepth &&
        !await_host(view, leg, &words->emptied[blockIdx.x], i + 1 - kCourierDepth)) {
      return false;
    }
    copy_tile<4>(slot, data, bytes);
    tell_host(&words->filled[blockIdx.x], leg, i + 1);
    return true;
  });
}

// One thread, which takes nothing from other kernels.
__global__ void gate(const __grid_constant__ CourierView view, uint32_t number) {
  while (static_cast<int32_t>(load_acquire(&view.words->open) - number) < 0) {
    __nanosleep(kNapNanoseconds);
  }
}

__global__ void __launch_bounds__(kThreads)
    drop(const __grid_constant__ CourierView view, const __grid_constant__ CourierLeg leg) {
  CourierWords* const words = view.words;
  for_each_piece(view, leg, [&](char* data, const char* slot, uint64_t bytes, uint32_t i) {
    if (!await_host(view, leg, &words->offered[blockIdx.x], i + 1)) return false;
    copy_tile<4>(data, slot, bytes);
    tell_host(&words->taken[blockIdx.x], leg, i + 1);
    return true;
  });
}

LaunchShape shape_of(int blocks, int threads, cudaStream_t stream) {
  LaunchShape shape;
  shape.blocks = blocks;
  shape.threads = threads;
  shape.stream = stream;
  shape.overlap = false;
  return shape;
}

}  // namespace

cudaError_t launch_lift(const CourierView& view, const CourierLeg& leg, cudaStream_t stream) {
  return start(lift, shape_of(leg.blocks, kThreads, stream), 0, view, leg);
}

cudaError_t launch_gate(const CourierView& view, uint32_t number, cudaStream_t stream) {
  return start(gate, shape_of(1, 1, stream), 0, view, number);
}

cudaError_t launch_drop(const CourierView& view, const CourierLeg& leg, cudaStream_t stream) {
  return start(drop, shape_of(leg.blocks, kThreads, stream), 0, view, leg);
}

cudaError_t load_courier() {
  cudaFuncAttributes attributes;
  for (const void* const kernel :
       {reinterpret_cast<const void*>(lift), reinterpret_cast<const void*>(gate),
        reinterpret_cast<const void*>(drop)}) {
    if (const cudaError_t code = cudaFuncGetAttributes(&attributes, kernel); code != cudaSuccess) {
      return code;
    }
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
