#include "moe/shapes.h"

namespace zbccl::moe {

Status null_pointer(const char* name) {
  return error(Code::kInvalidArgument, "`{}` is a null pointer", name);
}

Result<size_t> check_rows(int64_t hidden, DataType type) {
  if (hidden < 1 || hidden > kMostHidden) {
    return error(Code::kInvalidArgument, "hidden is {}, expected 1 to {}", hidden, kMostHidden);
  }
  const size_t bytes = static_cast<size_t>(hidden) * type_size(type);
  if (bytes % 16 != 0) {
    return error(Code::kInvalidArgument,
                 "rows of hidden {} x {} have {} bytes, expected a multiple of 16", hidden,
                 type_name(type), bytes);
  }
  return bytes;
}

Result<size_t> check_stride(int64_t stride, int64_t hidden, size_t element) {
  if (stride != 0 && stride < hidden) {
    return error(Code::kInvalidArgument, "a stride of {} is less than hidden, {}", stride, hidden);
  }
  return static_cast<size_t>(stride == 0 ? hidden : stride) * element;
}

}  // namespace zbccl::moe
