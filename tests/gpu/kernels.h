// Kernels of the tests: they delay a stream, make inputs and check outputs where these lie, so that
// a test can run thousands of calls without the host. Declared without CUDA's compiler.
#pragma once

#include <cuda_runtime_api.h>
#include <zbccl/zbccl.h>

#include <cstddef>
#include <cstdint>

namespace zbccl::test {

// Occupies the stream for so long, on one thread.
void launch_delay(cudaStream_t stream, int64_t microseconds);
// Occupies the stream until *released, in pinned memory, is not 0, or 20 seconds are over.
void launch_hold(cudaStream_t stream, const uint32_t* released);

// Element i of rank r's input in step s: small integers whose sums over 8 ranks are exact in every
// type that is served: u32, f32 and bf16.
struct Source {
  zbcclDataType_t type = zbcclFloat32;
  uint32_t seed = 0;
  // Step: *counter, read when the kernel runs, plus `step`; `counter` may be null.
  const uint32_t* counter = nullptr;
  uint32_t step = 0;
};

// Writes elements [first, first + count) of `rank`'s input.
void launch_fill(cudaStream_t stream, const Source& source, int rank, size_t first, size_t count,
                 void* out);

enum class Expect {
  kSum,     // over all ranks, of element first + i
  kGather,  // element i % count_each of rank i / count_each
  kRank,    // element first + i of rank `rank`
};
struct Expectation {
  Expect what = Expect::kSum;
  int ranks = 1;
  int rank = 0;
  size_t first = 0;
  size_t count_each = 1;
};
// Adds to *wrong, in device memory, how many of the `count` elements at `data` are not as expected.
void launch_check(cudaStream_t stream, const Source& source, const Expectation& expectation,
                  size_t count, const void* data, unsigned long long* wrong);

// Adds 1 to *counter.
void launch_advance(cudaStream_t stream, uint32_t* counter);

}  // namespace zbccl::test
