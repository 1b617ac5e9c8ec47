// A caller's tensor for the time of one operation.
#pragma once

#include <nanobind/nanobind.h>
#include <zbccl/zbccl.h>

#include <cstddef>
#include <memory>
#include <string>

#include "bindings/python/src/tensor.h"

namespace zbccl::python {

enum class Access { kRead, kWrite };

// Keeps the memory alive and exported until it is destroyed, which needs the GIL.
struct Operand {
  void* data = nullptr;
  size_t count = 0;
  zbcclDataType_t type = zbcclFloat32;
  Shape shape;
  std::shared_ptr<void> holder;

  // Takes a zbccl.Tensor, an object with the buffer protocol, or one with DLPack, without a copy.
  // It must lie in host memory, be row-major, and be writable for kWrite. `what` ("all_reduce: x")
  // opens the messages.
  static Operand import(nanobind::handle object, Access access, const std::string& what);
};

}  // namespace zbccl::python
