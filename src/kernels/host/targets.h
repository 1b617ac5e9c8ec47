// The kernels' instruction sets. One source is compiled once for each; the best that the processor
// has is chosen when the first kernel runs. Internal to src/kernels and its tests.
#pragma once

#include <cstddef>
#include <span>

#include "base/types.h"

namespace zbccl::kernels {

// What one kernel call needs; the operands are in rank order. num_src >= 2 except for kAvg.
struct Call {
  const void* const* src;
  size_t num_src;
  size_t src_offset;  // bytes, added to every source
  void* const* dst;
  size_t num_dst;
  size_t count;
  size_t divisor;  // kAvg of floats only
};
using Kernel = void (*)(const Call& call);

struct Target {
  const char* name;
  // Float kAvg included; the caller does integer kAvg by kSum and a division.
  Kernel reduce[kNumDataTypes][kNumRedOps];
  void (*stream_copy)(void* dst, const void* src, size_t bytes);  // the caller fences
};

// Compiled in and supported by this processor, best first; never empty.
std::span<const Target* const> available_targets();
// The one in use.
const Target& target();
// For tests: uses `target` from now on; nullptr restores the choice.
void set_target(const Target* target);

}  // namespace zbccl::kernels
