// Sums of elements that are sent as 8-bit codes with a scale for each group of kScaleGroup
// neighbours. Stateless; any thread; no alignment asked of any pointer.
//
//   amax    the largest magnitude of the group, at least 1e-10
//   scale   amax / 448 (e4m3) or amax / 127 (int8)
//   code    v * (1 / scale), to nearest even
//   value   code * scale
//
// Each step is one IEEE operation in f32; the GPU kernels (kernels/cuda/quantize.cuh) give the same
// bits. A NaN stays one in e4m3 and does not touch its neighbours; int8 has no code for it, so its
// whole group becomes NaN. An infinite value makes its group NaN, too.
#pragma once

#include <cstddef>

#include "base/types.h"

namespace zbccl::kernels {

inline bool can_quantize(DataType type) {
  return type == DataType::kF32 || type == DataType::kF16 || type == DataType::kBf16;
}
inline bool is_code(DataType type) { return type == DataType::kE4m3 || type == DataType::kI8; }

// dst[d][i] = Q(sum over k of Q(src[k][i])), where Q(v) is the value of v's code: the values are
// added in the order of k in f32, and the last one is rounded to the type. Groups begin at the
// first element; the last may be short. A destination may be the same range as a source; otherwise
// they do not overlap. num_src >= 1 and num_dst >= 1.
struct QuantizedSum {
  const void* const* src;
  size_t num_src;
  void* const* dst;
  size_t num_dst;
  size_t count;
  DataType type;  // f32, f16 or bf16
  DataType code;  // e4m3 or i8
};
void sum_quantized(const QuantizedSum& sum);

}  // namespace zbccl::kernels
