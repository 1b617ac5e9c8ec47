// The operations: takes the tensors, checks that they fit each other, calls the library.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <utility>
#include <vector>

#include "bindings/python/src/communicator.h"
#include "bindings/python/src/error.h"
#include "bindings/python/src/operand.h"

namespace nb = nanobind;

namespace zbccl::python {
namespace {

// What an operation gives back: its flight if asynchronous, and the output it allocated, if any.
using Reply = nb::tuple;

Reply reply(FlightPtr flight, nb::object made = nb::none()) {
  return nb::make_tuple(flight == nullptr ? nb::none() : nb::cast(std::move(flight)),
                        std::move(made));
}

void require_type(const Operand& x, const Operand& out, const std::string& name) {
  if (x.type == out.type) return;
  fail(zbcclInvalidArgument, name + ": out has dtype " + zbcclTypeName(out.type) + ", but x has " +
                                 zbcclTypeName(x.type));
}

void require_shape(const Operand& out, const Shape& expected, const std::string& name) {
  if (out.shape == expected) return;
  fail(zbcclInvalidArgument,
       name + ": out has shape " + to_string(out.shape) + "; expected " + to_string(expected));
}

// `ranks` pieces of `piece` laid end to end along its first dimension, and stacked along a new one.
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

// The caller's `out`, or a tensor from the pool.
struct Output {
  Operand operand;
  nb::object made = nb::none();
};

Output allocate(const Shape& shape, zbcclDataType_t type) {
  Output output;
  Tensor tensor = Tensor::empty(shape, type);
  output.operand = {tensor.block->data(), tensor.count(), type, shape, tensor.block};
  output.made = nb::cast(std::move(tensor));
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

std::vector<Operand> holding(Operand a, Operand b = {}) {
  std::vector<Operand> operands;
  operands.push_back(std::move(a));
  if (b.holder != nullptr) operands.push_back(std::move(b));
  return operands;
}

Reply all_reduce(Communicator& self, nb::handle x, nb::handle out, const std::string& op,
                 int64_t timeout_ms, bool asynchronous) {
  const bool in_place = out.is_none();
  const zbcclRedOp_t reduction = op_from_name(op, "all_reduce");
  Operand input = Operand::import(x, in_place ? Access::kWrite : Access::kRead, "all_reduce: x");
  Operand output = in_place ? input : Operand::import(out, Access::kWrite, "all_reduce: out");
  if (!in_place) {
    require_type(input, output, "all_reduce");
    require_shape(output, input.shape, "all_reduce");
  }
  const void* send = input.data;
  void* recv = output.data;
  const size_t count = input.count;
  const zbcclDataType_t type = input.type;
  zbcclComm_t comm = self.get("all_reduce");
  return reply(self.run("all_reduce", {timeout_ms, asynchronous},
                        holding(std::move(input), std::move(output)), [&](const zbcclCall_t* call) {
                          return zbcclAllReduce(send, recv, count, type, reduction, comm, call);
                        }));
}

Reply all_gather(Communicator& self, nb::handle x, nb::handle out, int64_t timeout_ms,
                 bool asynchronous) {
  Operand input = Operand::import(x, Access::kRead, "all_gather: x");
  const Shape shape = joined(input.shape, self.size());
  Output output;
  if (out.is_none()) {
    output = allocate(shape, input.type);
  } else {
    output.operand = Operand::import(out, Access::kWrite, "all_gather: out");
    require_type(input, output.operand, "all_gather");
    if (output.operand.shape != stacked(input.shape, self.size())) {
      require_shape(output.operand, shape, "all_gather");
    }
  }
  const void* send = input.data;
  void* recv = output.operand.data;
  const size_t count = input.count;
  const zbcclDataType_t type = input.type;
  zbcclComm_t comm = self.get("all_gather");
  FlightPtr flight = self.run(
      "all_gather", {timeout_ms, asynchronous},
      holding(std::move(input), std::move(output.operand)),
      [&](const zbcclCall_t* call) { return zbcclAllGather(send, recv, count, type, comm, call); });
  return reply(std::move(flight), std::move(output.made));
}

// The shape of one rank's piece of `input`.
Shape piece_of(const Operand& input, int ranks) {
  if (input.shape.empty() || input.shape[0] % ranks != 0) {
    fail(zbcclInvalidArgument, "reduce_scatter: x has shape " + to_string(input.shape) +
                                   "; its first dimension must be a multiple of the " +
                                   std::to_string(ranks) + " ranks");
  }
  Shape piece = input.shape;
  piece[0] /= ranks;
  return piece;
}

Reply reduce_scatter(Communicator& self, nb::handle x, nb::handle out, const std::string& op,
                     int64_t timeout_ms, bool asynchronous) {
  const zbcclRedOp_t reduction = op_from_name(op, "reduce_scatter");
  Operand input = Operand::import(x, Access::kRead, "reduce_scatter: x");
  const Shape piece = piece_of(input, self.size());
  Output output;
  if (out.is_none()) {
    output = allocate(piece, input.type);
  } else {
    output.operand = Operand::import(out, Access::kWrite, "reduce_scatter: out");
    require_type(input, output.operand, "reduce_scatter");
    if (stacked(output.operand.shape, self.size()) != input.shape) {
      require_shape(output.operand, piece, "reduce_scatter");
    }
  }
  const void* send = input.data;
  void* recv = output.operand.data;
  const size_t count = output.operand.count;
  const zbcclDataType_t type = input.type;
  zbcclComm_t comm = self.get("reduce_scatter");
  FlightPtr flight =
      self.run("reduce_scatter", {timeout_ms, asynchronous},
               holding(std::move(input), std::move(output.operand)), [&](const zbcclCall_t* call) {
                 return zbcclReduceScatter(send, recv, count, type, reduction, comm, call);
               });
  return reply(std::move(flight), std::move(output.made));
}

Reply broadcast(Communicator& self, nb::handle x, int root, nb::handle out, int64_t timeout_ms,
                bool asynchronous) {
  const bool in_place = out.is_none();
  const bool sends = self.rank() == root;
  Operand input;
  if (sends || in_place) {
    const bool written = in_place && !sends;
    input = Operand::import(x, written ? Access::kWrite : Access::kRead, "broadcast: x");
  }
  Operand output = in_place ? input : Operand::import(out, Access::kWrite, "broadcast: out");
  if (sends && !in_place) {
    require_type(input, output, "broadcast");
    require_shape(output, input.shape, "broadcast");
  }
  void* recv = output.data;
  const void* send = sends ? input.data : recv;
  const size_t count = output.count;
  const zbcclDataType_t type = output.type;
  zbcclComm_t comm = self.get("broadcast");
  return reply(self.run("broadcast", {timeout_ms, asynchronous},
                        holding(std::move(output), std::move(input)), [&](const zbcclCall_t* call) {
                          return zbcclBroadcast(send, recv, count, type, root, comm, call);
                        }));
}

Reply barrier(Communicator& self, int64_t timeout_ms, bool asynchronous) {
  zbcclComm_t comm = self.get("barrier");
  return reply(self.run("barrier", {timeout_ms, asynchronous}, {},
                        [&](const zbcclCall_t* call) { return zbcclBarrier(comm, call); }));
}

Reply send(Communicator& self, nb::handle x, int peer, int64_t timeout_ms, bool asynchronous) {
  Operand input = Operand::import(x, Access::kRead, "send: x");
  const void* data = input.data;
  const size_t count = input.count;
  const zbcclDataType_t type = input.type;
  zbcclComm_t comm = self.get("send");
  return reply(self.run(
      "send", {timeout_ms, asynchronous}, holding(std::move(input)),
      [&](const zbcclCall_t* call) { return zbcclSend(data, count, type, peer, comm, call); }));
}

Reply recv(Communicator& self, nb::handle x, int peer, int64_t timeout_ms, bool asynchronous) {
  Operand output = Operand::import(x, Access::kWrite, "recv: x");
  void* data = output.data;
  const size_t count = output.count;
  const zbcclDataType_t type = output.type;
  zbcclComm_t comm = self.get("recv");
  return reply(self.run(
      "recv", {timeout_ms, asynchronous}, holding(std::move(output)),
      [&](const zbcclCall_t* call) { return zbcclRecv(data, count, type, peer, comm, call); }));
}

}  // namespace

#define ZBCCL_SIGNATURE(name, arguments)             \
  nb::sig("def " name "(self, " arguments            \
          "timeout_ms: int, asynchronous: bool) -> " \
          "tuple[Flight | None, Tensor | None]")

void bind_operations(nb::class_<Communicator>& type) {
  type.def("all_reduce", &all_reduce, nb::arg("x").none(), nb::arg("out").none(), nb::arg("op"),
           nb::arg("timeout_ms"), nb::arg("asynchronous"),
           ZBCCL_SIGNATURE("all_reduce", "x: object, out: object | None, op: str, "))
      .def("all_gather", &all_gather, nb::arg("x").none(), nb::arg("out").none(),
           nb::arg("timeout_ms"), nb::arg("asynchronous"),
           ZBCCL_SIGNATURE("all_gather", "x: object, out: object | None, "))
      .def("reduce_scatter", &reduce_scatter, nb::arg("x").none(), nb::arg("out").none(),
           nb::arg("op"), nb::arg("timeout_ms"), nb::arg("asynchronous"),
           ZBCCL_SIGNATURE("reduce_scatter", "x: object, out: object | None, op: str, "))
      .def("broadcast", &broadcast, nb::arg("x").none(), nb::arg("root"), nb::arg("out").none(),
           nb::arg("timeout_ms"), nb::arg("asynchronous"),
           ZBCCL_SIGNATURE("broadcast", "x: object | None, root: int, out: object | None, "))
      .def("barrier", &barrier, nb::arg("timeout_ms"), nb::arg("asynchronous"),
           ZBCCL_SIGNATURE("barrier", ""))
      .def("send", &send, nb::arg("x").none(), nb::arg("peer"), nb::arg("timeout_ms"),
           nb::arg("asynchronous"), ZBCCL_SIGNATURE("send", "x: object, peer: int, "))
      .def("recv", &recv, nb::arg("x").none(), nb::arg("peer"), nb::arg("timeout_ms"),
           nb::arg("asynchronous"), ZBCCL_SIGNATURE("recv", "x: object, peer: int, "));
}

#undef ZBCCL_SIGNATURE

}  // namespace zbccl::python
