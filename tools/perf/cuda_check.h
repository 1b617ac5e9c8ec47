// Whether a call on GPUs gives the right bits.
//
// Inputs lie in host memory first and are copied over, outputs are poisoned, and what comes back is
// compared element by element. Reductions get random numbers whose sums round, with NaN and
// infinities among them; what must come out is what the library gives for the same numbers in host
// memory, which its own tests compare with docs/numerics.md. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <zbccl/zbccl.hpp>

#include "measure/buffers.h"
#include "perf/cuda_runtime.h"
#include "perf/variant.h"

namespace zbccl::tools {

enum class CudaInput {
  kRandom,  // results depend on the order of summation
  kExact,   // small integers: every library gives the same sums
};

class CudaCheck {
 public:
  // For sizes up to `max_bytes`. `control` is a communicator of the same ranks on host memory.
  CudaCheck(Communicator& control, Op op, size_t max_bytes);

  // Collective: wrong elements on this rank after `call`, which enqueues the variant's call on
  // `stream`. The variant's buffers lie on the device. A new seed for each check, the same on every
  // rank.
  uint64_t wrong(const Variant& variant, const CudaStream& stream, CudaInput input, uint64_t seed,
                 const std::function<void()>& call);

 private:
  Variant mirror_of(const Variant& variant) const;
  void fill_input(const Variant& mirror, CudaInput input, uint64_t seed);
  uint64_t wrong_reduction(const Variant& mirror, const void* output);

  Communicator& control_;
  Memory first_;
  Memory second_;
  Memory expected_;
  Memory extra_;
  Memory fetched_;
};

}  // namespace zbccl::tools
