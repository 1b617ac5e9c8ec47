#include <cuda_bf16.h>

#include "gpu/kernels.h"

namespace zbccl::test {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kMaxGrid = 32;
constexpr unsigned long long kLongestHold = 20'000'000'000ull;  // nanoseconds

__device__ unsigned long long nanoseconds() {
  unsigned long long now = 0;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

__global__ void delay(unsigned long long length) {
  const unsigned long long begin = nanoseconds();
  while (nanoseconds() - begin < length) __nanosleep(200);
}

__global__ void hold(const volatile uint32_t* released) {
  const unsigned long long begin = nanoseconds();
  while (*released == 0 && nanoseconds() - begin < kLongestHold) __nanosleep(500);
}

__device__ uint32_t mixed(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// In [-8, 7].
__device__ int value(uint32_t seed, uint32_t step, int rank, size_t index) {
  const uint32_t key = mixed(seed + step * 0x9e3779b9u) ^ mixed(static_cast<uint32_t>(rank) + 77u);
  return static_cast<int>(mixed(key + static_cast<uint32_t>(index)) & 15u) - 8;
}

__device__ uint32_t step_of(const Source& source) {
  return source.step + (source.counter != nullptr ? *source.counter : 0u);
}

__device__ void store(void* out, zbcclDataType_t type, size_t i, int number) {
  switch (type) {
    case zbcclBfloat16:
      static_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16(static_cast<float>(number));
      return;
    case zbcclFloat32: static_cast<float*>(out)[i] = static_cast<float>(number); return;
    default: static_cast<uint32_t*>(out)[i] = static_cast<uint32_t>(number); return;
  }
}

__device__ bool same(const void* data, zbcclDataType_t type, size_t i, int number) {
  switch (type) {
    case zbcclBfloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]) ==
             static_cast<float>(number);
    case zbcclFloat32: return static_cast<const float*>(data)[i] == static_cast<float>(number);
    default: return static_cast<const uint32_t*>(data)[i] == static_cast<uint32_t>(number);
  }
}

__global__ void fill(Source source, int rank, size_t first, size_t count, void* out) {
  const uint32_t step = step_of(source);
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    store(out, source.type, i, value(source.seed, step, rank, first + i));
  }
}

__device__ int expected(const Source& source, uint32_t step, const Expectation& e, size_t i) {
  if (e.what == Expect::kRank) return value(source.seed, step, e.rank, e.first + i);
  if (e.what == Expect::kGather) {
    return value(source.seed, step, static_cast<int>(i / e.count_each), i % e.count_each);
  }
  int sum = 0;
  for (int rank = 0; rank < e.ranks; ++rank) sum += value(source.seed, step, rank, e.first + i);
  return sum;
}

__global__ void check(Source source, Expectation expectation, size_t count, const void* data,
                      unsigned long long* wrong) {
  const uint32_t step = step_of(source);
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  unsigned long long found = 0;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    found += same(data, source.type, i, expected(source, step, expectation, i)) ? 0 : 1;
  }
  if (found != 0) atomicAdd(wrong, found);
}

__global__ void advance(uint32_t* counter) { *counter += 1; }

unsigned grid_for(size_t count) {
  const size_t blocks = (count + kThreads - 1) / kThreads;
  return blocks < 1 ? 1u : blocks > kMaxGrid ? kMaxGrid : static_cast<unsigned>(blocks);
}

}  // namespace

void launch_delay(cudaStream_t stream, int64_t microseconds) {
  delay<<<1, 1, 0, stream>>>(static_cast<unsigned long long>(microseconds) * 1000);
}

void launch_hold(cudaStream_t stream, const uint32_t* released) {
  hold<<<1, 1, 0, stream>>>(released);
}

void launch_fill(cudaStream_t stream, const Source& source, int rank, size_t first, size_t count,
                 void* out) {
  fill<<<grid_for(count), kThreads, 0, stream>>>(source, rank, first, count, out);
}

void launch_check(cudaStream_t stream, const Source& source, const Expectation& expectation,
                  size_t count, const void* data, unsigned long long* wrong) {
  check<<<grid_for(count), kThreads, 0, stream>>>(source, expectation, count, data, wrong);
}

void launch_advance(cudaStream_t stream, uint32_t* counter) {
  advance<<<1, 1, 0, stream>>>(counter);
}

}  // namespace zbccl::test
