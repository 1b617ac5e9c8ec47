// What the tests of src/kernels/cuda/numbers.h on the host and on a GPU share: operands, the host
// kernels' result, and the reduction of one pack.
#pragma once

#include <cstddef>
#include <vector>

#include "base/types.h"
#include "kernels/cuda/numbers.h"
#include "reduce_reference.h"

namespace zbccl::cuda::test {

using kernels::test::Bytes;

inline constexpr int kRankCounts[] = {2, 3, 4, 5, 6, 7, 8, 9, 16};

// One block of whole packs from each rank.
struct Operands {
  std::vector<Bytes> of_rank;
  size_t count;  // elements
};

// Ordinary and random bits; every pair of special values in every lane; of 8- and 16-bit types and
// two or three ranks every pattern, too (8-bit: every pair).
std::vector<Operands> operand_sets(DataType type, int nranks);

// By kernels::reduce.
Bytes host_result(DataType type, RedOp op, const Operands& operands);

// One pack of every rank; that of rank k lies at x + k * stride.
template <DataType kType>
ZBCCL_BOTH Pack reduce_pack(const Pack* x, size_t stride, int nranks, RedOp op) {
  using V = Vec<kType>;
  typename V::Sum sum;
  V::first(sum, x[0]);
  for (int k = 1; k < nranks; ++k) V::add(sum, x[k * stride], op);
  return V::finish(sum, op, nranks);
}

// Calls f.template operator()<type>().
template <typename F>
void with_type(DataType type, F&& f) {
  switch (type) {
    case DataType::kF32: return f.template operator()<DataType::kF32>();
    case DataType::kF64: return f.template operator()<DataType::kF64>();
    case DataType::kF16: return f.template operator()<DataType::kF16>();
    case DataType::kBf16: return f.template operator()<DataType::kBf16>();
    case DataType::kE4m3: return f.template operator()<DataType::kE4m3>();
    case DataType::kE5m2: return f.template operator()<DataType::kE5m2>();
    case DataType::kI8: return f.template operator()<DataType::kI8>();
    case DataType::kU8: return f.template operator()<DataType::kU8>();
    case DataType::kI16: return f.template operator()<DataType::kI16>();
    case DataType::kU16: return f.template operator()<DataType::kU16>();
    case DataType::kI32: return f.template operator()<DataType::kI32>();
    case DataType::kU32: return f.template operator()<DataType::kU32>();
    case DataType::kI64: return f.template operator()<DataType::kI64>();
    case DataType::kU64: return f.template operator()<DataType::kU64>();
  }
}

}  // namespace zbccl::cuda::test
