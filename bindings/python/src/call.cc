#include "bindings/python/src/call.h"

#include <nanobind/stl/string.h>

#include <algorithm>

#include "bindings/python/src/error.h"

namespace nb = nanobind;

namespace zbccl::python {

Output allocate(const Shape& shape, zbcclDataType_t type, int device) {
  Output output;
  Tensor tensor = Tensor::empty(shape, type, device);
  output.operand = {tensor.block->data(), tensor.count(), type,         shape,
                    tensor.block,         device,         tensor.block, {}};
  output.made = nb::cast(std::move(tensor));
  return output;
}

Shape joined(const Shape& piece, int ranks) {
  Shape shape = piece.empty() ? Shape{1} : piece;
  shape[0] *= ranks;
  return shape;
}

Shape stacked(const Shape& piece, int ranks) {
  Shape shape = piece;
  shape.insert(shape.begin(), ranks);
  return shape;
}

Shape piece_of(const Operand& input, int ranks, const std::string& name) {
  if (input.shape.empty() || input.shape[0] % ranks != 0) {
    fail(zbcclInvalidArgument, name + ": x has shape " + to_string(input.shape) +
                                   "; its first dimension must be a multiple of the " +
                                   std::to_string(ranks) + " ranks");
  }
  Shape piece = input.shape;
  piece[0] /= ranks;
  return piece;
}

Output open_output(nb::handle out, const Operand& input, std::initializer_list<Shape> shapes,
                   const std::string& name) {
  if (out.is_none()) return allocate(*shapes.begin(), input.type, input.device);
  Output output;
  output.operand = Operand::import(out, Access::kWrite, name + ": out");
  if (input.type != output.operand.type) {
    fail(zbcclInvalidArgument, name + ": out has dtype " + zbcclTypeName(output.operand.type) +
                                   ", but x has " + zbcclTypeName(input.type));
  }
  if (std::find(shapes.begin(), shapes.end(), output.operand.shape) == shapes.end()) {
    fail(zbcclInvalidArgument, name + ": out has shape " + to_string(output.operand.shape) +
                                   "; expected " + to_string(*shapes.begin()));
  }
  return output;
}

zbcclRedOp_t op_from_name(const std::string& op, const std::string& name) {
  std::string known;
  for (int i = 0; i < zbcclNumOps; ++i) {
    const auto value = static_cast<zbcclRedOp_t>(i);
    if (op == zbcclOpName(value)) return value;
    known.append(i == 0 ? "" : " ").append(zbcclOpName(value));
  }
  fail(zbcclInvalidArgument, name + ": unknown op '" + op + "'; known are " + known);
}

}  // namespace zbccl::python
