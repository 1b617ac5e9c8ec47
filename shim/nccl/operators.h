// Reduction operators that users make: a sum whose operands are multiplied by a factor first.
#pragma once

#include <array>
#include <cstddef>

#include "types.h"

namespace zbccl::nccl {

struct Operator {
  bool alive = false;
  ncclDataType_t type = ncclFloat32;
  ncclScalarResidence_t residence = ncclScalarHostImmediate;
  std::array<std::byte, 8> scalar = {};  // its first bytes are one element
  const void* place = nullptr;           // of ncclScalarDevice: read when the call is made
};

// Null where `op` is none of the communicator's.
const Operator* find_operator(const ncclComm* comm, ncclRedOp_t op);
Operator* find_operator(ncclComm* comm, ncclRedOp_t op);

// Bytes of one element.
size_t element_size(ncclDataType_t type);

// to[i] = factor * from[i] in host memory, rounded once; `factor` is one element. Floats of 8 bits
// saturate.
void multiply(const void* from, void* to, size_t count, ncclDataType_t type, const void* factor);

}  // namespace zbccl::nccl
