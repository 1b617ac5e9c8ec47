// What the arguments of a dispatch or combine come to, once they are checked. Values; the checks
// know nothing of peers.
#pragma once

#include <zbccl/moe.h>

#include <cstddef>

#include "base/status.h"
#include "base/types.h"
#include "moe/handle.h"
#include "moe/moe.h"
#include "moe/scales.h"

namespace zbccl::moe {

struct DispatchShape {
  size_t row_bytes = 0;       // of x
  size_t stride = 0;          // of x, bytes
  size_t recv_row_bytes = 0;  // of recv_x
  size_t recv_stride = 0;     // of recv_x, bytes
  ScaleMatrix in_scales;
  ScaleMatrix out_scales;
};

struct CombineShape {
  size_t row_bytes = 0;
  size_t stride = 0;      // of y, bytes
  size_t out_stride = 0;  // bytes
};

// What must be true before any rank moves a row. `device`: the GPU that all arrays must be on, or
// kHostMemory.
Result<DispatchShape> check_dispatch(const zbcclMoeDispatch_t& call, const Handle& handle,
                                     int device);
Result<CombineShape> check_combine(const zbcclMoeCombine_t& call, const Handle& handle, int device);

// The parts of these checks that both have.
inline constexpr int64_t kMostHidden = int64_t{1} << 30;
Status null_pointer(const char* name);
// Bytes of a row, which must be a multiple of 16.
Result<size_t> check_rows(int64_t hidden, DataType type);
// In bytes, of a stride in elements; 0 stands for rows that lie one behind the other.
Result<size_t> check_stride(int64_t stride, int64_t hidden, size_t element);

// Bytes of `count` rows from the first to the end of the last.
inline size_t rows_extent(int64_t count, size_t stride, size_t bytes) {
  return count == 0 ? 0 : static_cast<size_t>(count - 1) * stride + bytes;
}

}  // namespace zbccl::moe
