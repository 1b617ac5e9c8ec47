// What the operations share: their output, the tensors they keep, and how they reach the library.
#pragma once

#include <nanobind/nanobind.h>
#include <zbccl/zbccl.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "bindings/python/src/communicator.h"
#include "bindings/python/src/operand.h"

namespace zbccl::python {

// What an operation gives back: its flight if asynchronous, and the output it allocated, if any.
using Reply = nanobind::tuple;

// The caller's `out`, or a tensor from the pool; without memory where this rank gets nothing.
struct Output {
  Operand operand;
  nanobind::object made = nanobind::none();
};

// `ranks` pieces of `piece` laid end to end along its first dimension, and stacked along a new one.
Shape joined(const Shape& piece, int ranks);
Shape stacked(const Shape& piece, int ranks);
// The shape of one rank's piece of `input`; Failure where it does not divide.
Shape piece_of(const Operand& input, int ranks, const std::string& name);

// A new tensor from the pool.
Output allocate(const Shape& shape, zbcclDataType_t type, int device = kHost);
// `out`, which has the type of `input` and one of `shapes`, or, for None, a new tensor of the
// first of them.
Output open_output(nanobind::handle out, const Operand& input, std::initializer_list<Shape> shapes,
                   const std::string& name);

zbcclRedOp_t op_from_name(const std::string& op, const std::string& name);

// What a call of the C API needs besides its own arguments.
struct Arguments {
  const void* send = nullptr;
  void* recv = nullptr;
  zbcclComm_t comm = nullptr;
  const zbcclCall_t* how = nullptr;
};

// Makes `call(Arguments)`, which must not use `input` and `output`, and keeps both until it is
// done.
template <typename Call>
Reply launch(Communicator& self, const char* name, CallOptions options, Operand& input,
             Output& output, const Call& call) {
  const Arguments given = {input.data, output.operand.data, self.get(name), nullptr};
  std::vector<Operand> operands;
  for (Operand* operand : {&input, &output.operand}) {
    if (operand->holder != nullptr) operands.push_back(std::move(*operand));
  }
  FlightPtr flight = self.run(name, options, std::move(operands), [&](const zbcclCall_t* how) {
    Arguments arguments = given;
    arguments.how = how;
    return call(arguments);
  });
  return nanobind::make_tuple(
      flight == nullptr ? nanobind::none() : nanobind::cast(std::move(flight)),
      std::move(output.made));
}

// The operations with sizes of their own for each rank.
void bind_operations_v(nanobind::class_<Communicator>& type);
// The fused ones.
void bind_operations_fused(nanobind::class_<Communicator>& type);

}  // namespace zbccl::python
