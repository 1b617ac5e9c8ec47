// A caller's tensor for the time of one operation.
#pragma once

#include <nanobind/nanobind.h>
#include <zbccl/zbccl.h>

#include <cstddef>
#include <memory>
#include <string>

#include "bindings/python/src/stream.h"
#include "bindings/python/src/tensor.h"

namespace zbccl::python {

enum class Access { kRead, kWrite };
// What a call can walk: elements one behind the other, or any strides that do not overlap.
enum class Walk { kRowMajor, kStrided };

// Keeps the memory alive and exported until it is destroyed, which needs the GIL.
struct Operand {
  void* data = nullptr;
  size_t count = 0;
  zbcclDataType_t type = zbcclFloat32;
  Shape shape;
  std::shared_ptr<void> holder;
  int device = kHost;            // ordinal of the CUDA device that the memory is on
  std::shared_ptr<Block> block;  // of a zbccl.Tensor
  Shape strides;                 // in elements; empty: row-major

  // Takes a zbccl.Tensor, an object with the buffer protocol, or one with DLPack, without a copy.
  // It must lie in host memory or on a CUDA device, be row-major unless `walk` takes strides, and
  // be writable for kWrite. `what` ("all_reduce: x") opens the messages. What a framework has under
  // way on the memory is not waited for.
  static Operand import(nanobind::handle object, Access access, const std::string& what,
                        Walk walk = Walk::kRowMajor);

  // In elements, one for each dimension.
  Shape element_strides() const;
};

}  // namespace zbccl::python
