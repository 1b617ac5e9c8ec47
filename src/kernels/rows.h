// Host kernels for rows of tokens: adding up weighted rows, and quantizing one. Stateless; any
// thread; no alignment asked of any pointer. Follow docs/numerics.md. Types: f32, f16, bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"

namespace zbccl::kernels {

// out = bias[0] + bias[1] + weights[0] * src[0] + weights[1] * src[1] + ..., one operation after
// the other in f32, rounded once to the type. Without a bias it starts from +0.
struct RowSum {
  const void* const* src;
  const float* weights;  // null: rows are added as they are
  size_t num_src;
  const void* bias[2];  // may be null
  void* out;            // overlaps with no source
  size_t count;         // elements
  DataType type;
};
void sum_rows(const RowSum& args);

// One row to codes and f32 scales: e4m3 with a scale for each group of kScaleGroup, the last of
// which may be shorter, or int8 with one scale.
struct RowQuantization {
  const void* src;
  size_t count;
  DataType type;
  DataType code;      // kE4m3 or kI8
  bool power_of_two;  // e4m3: scales are rounded up to one
  void* codes;
  float* scales;
};
void quantize_row(const RowQuantization& args);

}  // namespace zbccl::kernels
