// The kernels' instruction sets. One source is compiled once for each; the best that the processor
// has is chosen when the first kernel runs. Internal to src/kernels and its tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/types.h"
#include "kernels/rows.h"

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

// One row of norm_rows(), its scales one behind the other.
struct NormRow {
  const void* x;
  const void* residual;  // null: none
  const void* weight;
  size_t hidden;
  float epsilon;
  float inverse_scale;
  bool one_plus_weight;
  NormCodes form;
  float* widened;      // scratch: `hidden` floats, rounded up to 256
  void* residual_out;  // null: not wanted
  void* out;           // the same
  uint8_t* codes;      // these three as `form` needs them
  float* scales;
  uint8_t* exponents;
};

struct Target {
  const char* name;
  // Float kAvg included; the caller does integer kAvg by kSum and a division.
  Kernel reduce[kNumDataTypes][kNumRedOps];
  void (*stream_copy)(void* dst, const void* src, size_t bytes);  // the caller fences
  void (*norm[2])(const NormRow& row);                            // f16, bf16
  Kernel quantized_sum[3][2];  // f32, f16, bf16; e4m3, int8. num_src >= 1
  // Null for types other than f32, f16 and bf16.
  void (*sum_rows[kNumDataTypes])(const RowSum& call);
  void (*quantize_e4m3[kNumDataTypes])(const RowQuantization& call);
  void (*quantize_i8[kNumDataTypes])(const RowQuantization& call);
};

// Compiled in and supported by this processor, best first; never empty.
std::span<const Target* const> available_targets();
// The one in use.
const Target& target();
// For tests: uses `target` from now on; nullptr restores the choice.
void set_target(const Target* target);

}  // namespace zbccl::kernels
