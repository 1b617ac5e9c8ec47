// Host kernels: element-wise reduction and copying. Stateless; any thread; no alignment asked of
// any pointer.
#pragma once

#include <cstddef>

#include "base/types.h"

namespace zbccl::kernels {

// out[i] = op over k in [0, num_src) of src[k][i], accumulated in that order: floats in FP32 (f64
// in f64) with one rounding (nearest even) at the end, integers modulo 2^bits. kAvg divides the sum
// by `avg_divisor` before the rounding. Follows docs/numerics.md. The result is written to each of
// `num_dst` destinations. A destination may be the same range as a source; otherwise they do not
// overlap. num_src >= 1 and num_dst >= 1, without an upper limit. With num_src == 1 (and, for kAvg,
// avg_divisor == 1) the source is copied bit for bit.
struct ReduceArgs {
  const void* const* src;
  size_t num_src;
  void* const* dst;
  size_t num_dst;
  size_t count;
  DataType type;
  RedOp op;
  size_t avg_divisor;  // used by kAvg only; >= 1
  bool stream_stores;  // write past the cache (large outputs that nobody reads soon); fenced before
                       // return
};
void reduce(const ReduceArgs& args);

// memcpy; with `stream_stores` past the cache and fenced before return.
void copy(void* dst, const void* src, size_t bytes, bool stream_stores);

// Exchanges the contents of two ranges that do not overlap.
void swap(void* a, void* b, size_t bytes);

// The instruction set that reduce() uses here: "avx512", "avx2", "sse4", "neon" or "baseline".
const char* simd_name();

}  // namespace zbccl::kernels
