// Memory from the library's pool with a shape and a type: what zbccl.empty returns.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>
#include <zbccl/zbccl.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings/python/src/stream.h"

namespace zbccl::python {

using Shape = std::vector<int64_t>;

// Elements in `shape`; Failure where a length is negative or the product does not fit.
size_t element_count(const Shape& shape);
// "(2, 3)", as Python writes it.
std::string to_string(const Shape& shape);
// Shape as a Python tuple.
nanobind::tuple to_tuple(const Shape& shape);
// Strides of a row-major tensor whose neighbours are `unit` apart.
Shape row_major_strides(const Shape& shape, int64_t unit);
// The type of that name ("f32", "bf16", ...); Failure for an unknown one.
zbcclDataType_t type_from_name(const std::string& name);

// One block of the pool; freed with its last view. Its last owner may be another framework's
// deleter, which runs on any thread and without the GIL.
class Block {
 public:
  // `device`: a CUDA device's ordinal or kHost.
  explicit Block(size_t bytes, int device = kHost);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* data() const noexcept { return data_; }
  size_t bytes() const noexcept { return bytes_; }
  int device() const noexcept { return device_; }
  // Device memory is used again only once this stream has come past the end of the block's life.
  void used_on(zbcclStream_t stream) noexcept { stream_.store(stream, std::memory_order_relaxed); }
  zbcclStream_t stream() const noexcept { return stream_.load(std::memory_order_relaxed); }

 private:
  void* data_ = nullptr;
  size_t bytes_;
  int device_;
  std::atomic<zbcclStream_t> stream_{nullptr};
  pid_t owner_ = getpid();
};

struct Tensor {
  std::shared_ptr<Block> block;
  Shape shape;
  zbcclDataType_t type = zbcclFloat32;

  static Tensor empty(Shape shape, zbcclDataType_t type, int device = kHost);
  size_t count() const { return element_count(shape); }
  size_t bytes() const { return count() * zbcclTypeSize(type); }
};

void bind_tensor(nanobind::module_& module);

}  // namespace zbccl::python
