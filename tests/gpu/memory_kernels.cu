#include "memory_kernels.h"

namespace zbccl::test {
namespace {

__device__ uint32_t* find(const Through& there) {
  return reinterpret_cast<uint32_t*>(there.table[there.segment] + there.offset);
}

__global__ void write_words(Through there, size_t words, uint32_t value) {
  uint32_t* const data = find(there);
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x) {
    data[i] = value + static_cast<uint32_t>(i);
  }
}

__global__ void compare_words(Through there, size_t words, uint32_t value, uint32_t* wrong) {
  const volatile uint32_t* const data = find(there);
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x) {
    if (data[i] != value + static_cast<uint32_t>(i)) atomicAdd(wrong, 1u);
  }
}

__global__ void spin(uint32_t* started, const uint32_t* released) {
  *static_cast<volatile uint32_t*>(started) = 1;
  __threadfence_system();
  uint64_t begin = 0;
  uint64_t now = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (*static_cast<const volatile uint32_t*>(released) == 0 && now - begin < 40'000'000'000);
}

}  // namespace

void launch_write(cudaStream_t stream, const Through& there, size_t words, uint32_t value) {
  write_words<<<8, 256, 0, stream>>>(there, words, value);
}

void launch_compare(cudaStream_t stream, const Through& there, size_t words, uint32_t value,
                    uint32_t* wrong) {
  compare_words<<<8, 256, 0, stream>>>(there, words, value, wrong);
}

void launch_spin(cudaStream_t stream, uint32_t* started, const uint32_t* released) {
  spin<<<1, 1, 0, stream>>>(started, released);
}

void load_kernels() {
  cudaFuncAttributes attributes;
  (void)cudaFuncGetAttributes(&attributes, write_words);
  (void)cudaFuncGetAttributes(&attributes, compare_words);
  (void)cudaFuncGetAttributes(&attributes, spin);
}

}  // namespace zbccl::test
