// The exact result of a reduction by the rules of docs/numerics.md, computed one element at a time.
#pragma once

#include <zbccl/zbccl.h>

#include <cstddef>
#include <span>

namespace zbccl::test {

// out[i] = op over k of inputs[k][i], in that order.
void reference_reduce(std::span<const void* const> inputs, void* out, size_t count,
                      zbcclDataType_t type, zbcclRedOp_t op);

}  // namespace zbccl::test
