// The operations: takes the tensors, checks that they fit each other, calls the library.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <utility>

#include "bindings/python/src/call.h"
#include "bindings/python/src/communicator.h"
#include "bindings/python/src/operand.h"

namespace nb = nanobind;

namespace zbccl::python {
namespace {

Reply all_reduce(Communicator& self, nb::handle x, nb::handle out, const std::string& op,
                 int64_t timeout_ms, bool asynchronous) {
  const bool in_place = out.is_none();
  const zbcclRedOp_t reduction = op_from_name(op, "all_reduce");
  Operand input = Operand::import(x, in_place ? Access::kWrite : Access::kRead, "all_reduce: x");
  Output output;
  if (in_place) {
    output.operand = input;
  } else {
    output = open_output(out, input, {input.shape}, "all_reduce");
  }
  const size_t count = input.count;
  const zbcclDataType_t type = input.type;
  return launch(self, "all_reduce", {timeout_ms, asynchronous}, input, output,
                [&](const Arguments& a) {
                  return zbcclAllReduce(a.send, a.recv, count, type, reduction, a.comm, a.how);
                });
}

// Only the root has an output: its `out`, or its x.
Reply reduce(Communicator& self, nb::handle x, int root, nb::handle out, const std::string& op,
             int64_t timeout_ms, bool asynchronous) {
  const bool is_root = self.rank() == root;
  const bool in_place = is_root && out.is_none();
  const zbcclRedOp_t reduction = op_from_name(op, "reduce");
  Operand input = Operand::import(x, in_place ? Access::kWrite : Access::kRead, "reduce: x");
  Output output;
  if (in_place) {
    output.operand = input;
  } else if (is_root) {
    output = open_output(out, input, {input.shape}, "reduce");
  }
  const size_t count = input.count;
  const zbcclDataType_t type = input.type;
  return launch(self, "reduce", {timeout_ms, asynchronous}, input, output, [&](const Arguments& a) {
    return zbcclReduce(a.send, a.recv, count, type, reduction, root, a.comm, a.how);
  });
}

Reply reduce_scatter(Communicator& self, nb::handle x, nb::handle out, const std::string& op,
                     int64_t timeout_ms, bool asynchronous) {
  const zbcclRedOp_t reduction = op_from_name(op, "reduce_scatter");
  Operand input = Operand::import(x, Access::kRead, "reduce_scatter: x");
  const Shape piece = piece_of(input, self.size(), "reduce_scatter");
  // A stacked input may give its piece without the first dimension.
  const Shape flat = piece[0] == 1 ? Shape(piece.begin() + 1, piece.end()) : piece;
  Output output = open_output(out, input, {piece, flat}, "reduce_scatter");
  const size_t count = output.operand.count;
  const zbcclDataType_t type = input.type;
  return launch(self, "reduce_scatter", {timeout_ms, asynchronous}, input, output,
                [&](const Arguments& a) {
                  return zbcclReduceScatter(a.send, a.recv, count, type, reduction, a.comm, a.how);
                });
}

Reply all_gather(Communicator& self, nb::handle x, nb::handle out, int64_t timeout_ms,
                 bool asynchronous) {
  Operand input = Operand::import(x, Access::kRead, "all_gather: x");
  Output output =
      open_output(out, input, {joined(input.shape, self.size()), stacked(input.shape, self.size())},
                  "all_gather");
  const size_t count = input.count;
  const zbcclDataType_t type = input.type;
  return launch(self, "all_gather", {timeout_ms, asynchronous}, input, output,
                [&](const Arguments& a) {
                  return zbcclAllGather(a.send, a.recv, count, type, a.comm, a.how);
                });
}

Reply gather(Communicator& self, nb::handle x, int root, nb::handle out, int64_t timeout_ms,
             bool asynchronous) {
  Operand input = Operand::import(x, Access::kRead, "gather: x");
  Output output;
  if (self.rank() == root) {
    output = open_output(out, input,
                         {joined(input.shape, self.size()), stacked(input.shape, self.size())},
                         "gather");
  }
  const size_t count = input.count;
  const zbcclDataType_t type = input.type;
  return launch(self, "gather", {timeout_ms, asynchronous}, input, output, [&](const Arguments& a) {
    return zbcclGather(a.send, a.recv, count, type, root, a.comm, a.how);
  });
}

// Only the root's x is read; elsewhere it gives shape and type, unless there is an `out`.
Reply scatter(Communicator& self, nb::handle x, int root, nb::handle out, int64_t timeout_ms,
              bool asynchronous) {
  Operand input;
  Output output;
  if (x.is_none() && self.rank() != root && !out.is_none()) {
    output.operand = Operand::import(out, Access::kWrite, "scatter: out");
  } else {
    input = Operand::import(x, Access::kRead, "scatter: x");
    const Shape piece = piece_of(input, self.size(), "scatter");
    const Shape flat = piece[0] == 1 ? Shape(piece.begin() + 1, piece.end()) : piece;
    output = open_output(out, input, {piece, flat}, "scatter");
  }
  const size_t count = output.operand.count;
  const zbcclDataType_t type = output.operand.type;
  return launch(self, "scatter", {timeout_ms, asynchronous}, input, output,
                [&](const Arguments& a) {
                  return zbcclScatter(a.send, a.recv, count, type, root, a.comm, a.how);
                });
}

Reply all_to_all(Communicator& self, nb::handle x, nb::handle out, int64_t timeout_ms,
                 bool asynchronous) {
  Operand input = Operand::import(x, Access::kRead, "all_to_all: x");
  const size_t ranks = static_cast<size_t>(self.size());
  (void)piece_of(input, self.size(), "all_to_all");
  Output output = open_output(out, input, {input.shape}, "all_to_all");
  const size_t count = input.count / ranks;
  const zbcclDataType_t type = input.type;
  return launch(self, "all_to_all", {timeout_ms, asynchronous}, input, output,
                [&](const Arguments& a) {
                  return zbcclAllToAll(a.send, a.recv, count, type, a.comm, a.how);
                });
}

Reply broadcast(Communicator& self, nb::handle x, int root, nb::handle out, int64_t timeout_ms,
                bool asynchronous) {
  const bool in_place = out.is_none();
  const bool sends = self.rank() == root;
  Operand input;
  Output output;
  if (sends || in_place) {
    const bool written = in_place && !sends;
    input = Operand::import(x, written ? Access::kWrite : Access::kRead, "broadcast: x");
  }
  if (in_place) {
    output.operand = input;
  } else if (sends) {
    output = open_output(out, input, {input.shape}, "broadcast");
  } else {
    output.operand = Operand::import(out, Access::kWrite, "broadcast: out");
  }
  const size_t count = output.operand.count;
  const zbcclDataType_t type = output.operand.type;
  return launch(
      self, "broadcast", {timeout_ms, asynchronous}, input, output, [&](const Arguments& a) {
        return zbcclBroadcast(sends ? a.send : a.recv, a.recv, count, type, root, a.comm, a.how);
      });
}

Reply barrier(Communicator& self, int64_t timeout_ms, bool asynchronous) {
  Operand input;
  Output output;
  CallOptions options = {timeout_ms, asynchronous};
  // Without tensors only a stream that was named says that it is to meet on the device.
  if (const auto stream = named_stream(); stream && self.device() != kHost) {
    options.device = self.device();
    options.stream = *stream;
  }
  return launch(self, "barrier", options, input, output,
                [](const Arguments& a) { return zbcclBarrier(a.comm, a.how); });
}

Reply send(Communicator& self, nb::handle x, int peer, int tag, int64_t timeout_ms,
           bool asynchronous) {
  Operand input = Operand::import(x, Access::kRead, "send: x");
  Output output;
  const size_t count = input.count;
  const zbcclDataType_t type = input.type;
  CallOptions options = {timeout_ms, asynchronous};
  options.tag = tag;
  return launch(self, "send", options, input, output, [&](const Arguments& a) {
    return zbcclSend(a.send, count, type, peer, a.comm, a.how);
  });
}

Reply recv(Communicator& self, nb::handle x, int peer, int tag, int64_t timeout_ms,
           bool asynchronous) {
  Operand input;
  Output output;
  output.operand = Operand::import(x, Access::kWrite, "recv: x");
  const size_t count = output.operand.count;
  const zbcclDataType_t type = output.operand.type;
  CallOptions options = {timeout_ms, asynchronous};
  options.tag = tag;
  return launch(self, "recv", options, input, output, [&](const Arguments& a) {
    return zbcclRecv(a.recv, count, type, peer, a.comm, a.how);
  });
}

}  // namespace

#define ZBCCL_DEFINE(name, arguments, ...)                                                \
  def(#name, &name, __VA_ARGS__, nb::arg("timeout_ms"), nb::arg("asynchronous"),          \
      nb::sig("def " #name "(self, " arguments "timeout_ms: int, asynchronous: bool) -> " \
              "tuple[Flight | None, Tensor | None]"))

void bind_operations(nb::class_<Communicator>& type) {
  type.ZBCCL_DEFINE(all_reduce, "x: object, out: object | None, op: str, ", nb::arg("x").none(),
                    nb::arg("out").none(), nb::arg("op"))
      .ZBCCL_DEFINE(reduce, "x: object, root: int, out: object | None, op: str, ",
                    nb::arg("x").none(), nb::arg("root"), nb::arg("out").none(), nb::arg("op"))
      .ZBCCL_DEFINE(reduce_scatter, "x: object, out: object | None, op: str, ", nb::arg("x").none(),
                    nb::arg("out").none(), nb::arg("op"))
      .ZBCCL_DEFINE(all_gather, "x: object, out: object | None, ", nb::arg("x").none(),
                    nb::arg("out").none())
      .ZBCCL_DEFINE(gather, "x: object, root: int, out: object | None, ", nb::arg("x").none(),
                    nb::arg("root"), nb::arg("out").none())
      .ZBCCL_DEFINE(scatter, "x: object | None, root: int, out: object | None, ",
                    nb::arg("x").none(), nb::arg("root"), nb::arg("out").none())
      .ZBCCL_DEFINE(all_to_all, "x: object, out: object | None, ", nb::arg("x").none(),
                    nb::arg("out").none())
      .ZBCCL_DEFINE(broadcast, "x: object | None, root: int, out: object | None, ",
                    nb::arg("x").none(), nb::arg("root"), nb::arg("out").none())
      .ZBCCL_DEFINE(send, "x: object, peer: int, tag: int, ", nb::arg("x").none(), nb::arg("peer"),
                    nb::arg("tag"))
      .ZBCCL_DEFINE(recv, "x: object, peer: int, tag: int, ", nb::arg("x").none(), nb::arg("peer"),
                    nb::arg("tag"));
  type.def("barrier", &barrier, nb::arg("timeout_ms"), nb::arg("asynchronous"),
           nb::sig("def barrier(self, timeout_ms: int, asynchronous: bool) -> "
                   "tuple[Flight | None, Tensor | None]"));
  bind_operations_v(type);
  bind_operations_fused(type);
}

#undef ZBCCL_DEFINE

}  // namespace zbccl::python
