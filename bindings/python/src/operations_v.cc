// The operations with sizes of their own for each rank, counted along the first dimension.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/python/src/call.h"
#include "bindings/python/src/communicator.h"
#include "bindings/python/src/error.h"
#include "bindings/python/src/group.h"
#include "bindings/python/src/operand.h"

namespace nb = nanobind;

namespace zbccl::python {
namespace {

using Sizes = std::vector<int64_t>;

void check_sizes(const Sizes& sizes, int ranks, const std::string& what) {
  if (sizes.size() != static_cast<size_t>(ranks)) {
    fail(zbcclInvalidArgument, what + " has " + std::to_string(sizes.size()) +
                                   " elements; there are " + std::to_string(ranks) + " ranks");
  }
  for (size_t r = 0; r < sizes.size(); ++r) {
    if (sizes[r] < 0) {
      fail(zbcclInvalidArgument,
           what + "[" + std::to_string(r) + "] is " + std::to_string(sizes[r]));
    }
  }
}

int64_t total(const Sizes& sizes) {
  int64_t sum = 0;
  for (int64_t size : sizes) {
    if (__builtin_add_overflow(sum, size, &sum)) {
      fail(zbcclInvalidArgument, "the sizes add up to more than memory");
    }
  }
  return sum;
}

// A tensor that is split along its first dimension.
Operand import_rows(nb::handle x, const std::string& name) {
  Operand input = Operand::import(x, Access::kRead, name + ": x");
  if (input.shape.empty()) {
    fail(zbcclInvalidArgument, name + ": x is a scalar; expected a first dimension to count along");
  }
  return input;
}

void require_rows(const Operand& input, int64_t expected, const std::string& name,
                  const std::string& why) {
  if (input.shape[0] == expected) return;
  fail(zbcclInvalidArgument, name + ": x has shape " + to_string(input.shape) + ", but " + why +
                                 " is " + std::to_string(expected));
}

Shape with_rows(const Operand& input, int64_t rows) {
  Shape shape = input.shape;
  shape[0] = rows;
  return shape;
}

// In elements, for the C API.
std::vector<size_t> counts_of(const Sizes& sizes, const Operand& input) {
  const size_t row = element_count(Shape(input.shape.begin() + 1, input.shape.end()));
  std::vector<size_t> counts;
  for (int64_t size : sizes) {
    size_t count = 0;
    if (__builtin_mul_overflow(static_cast<size_t>(size), row, &count)) {
      fail(zbcclInvalidArgument, "a size of " + std::to_string(size) + " is more than memory");
    }
    counts.push_back(count);
  }
  return counts;
}

// Blocks until every rank has told the others its sizes; what this rank is to receive.
Sizes exchange(Communicator& self, const char* name, int64_t timeout_ms, const Sizes& mine,
               bool same_for_all) {
  if (Group::current() != nullptr) {
    fail(zbcclInvalidUsage, std::string(name) +
                                ": inside a group nothing can be exchanged first; give the sizes "
                                "that this rank receives");
  }
  // In the pool, so that nothing is staged.
  const auto ranks = static_cast<size_t>(self.size());
  const Block block(2 * ranks * sizeof(int64_t));
  auto* const send = static_cast<int64_t*>(block.data());
  int64_t* const recv = send + ranks;
  std::copy(mine.begin(), mine.end(), send);
  zbcclComm_t comm = self.get(name);
  (void)self.run(name, {timeout_ms, false}, {}, [&](const zbcclCall_t* how) {
    return same_for_all ? zbcclAllGather(send, recv, 1, zbcclInt64, comm, how)
                        : zbcclAllToAll(send, recv, 1, zbcclInt64, comm, how);
  });
  return {recv, recv + ranks};
}

Reply all_gather_v(Communicator& self, nb::handle x, std::optional<Sizes> sizes, nb::handle out,
                   int64_t timeout_ms, bool asynchronous) {
  Operand input = import_rows(x, "all_gather_v");
  if (!sizes) sizes = exchange(self, "all_gather_v", timeout_ms, {input.shape[0]}, true);
  check_sizes(*sizes, self.size(), "all_gather_v: sizes");
  const auto me = static_cast<size_t>(self.rank());
  require_rows(input, (*sizes)[me], "all_gather_v", "sizes[" + std::to_string(me) + "]");
  const std::vector<size_t> counts = counts_of(*sizes, input);
  Output output = open_output(out, input, {with_rows(input, total(*sizes))}, "all_gather_v");
  const zbcclDataType_t type = input.type;
  return launch(
      self, "all_gather_v", {timeout_ms, asynchronous}, input, output, [&](const Arguments& a) {
        return zbcclAllGatherV(a.send, a.recv, counts.data(), nullptr, type, a.comm, a.how);
      });
}

Reply reduce_scatter_v(Communicator& self, nb::handle x, const Sizes& sizes, nb::handle out,
                       const std::string& op, int64_t timeout_ms, bool asynchronous) {
  const zbcclRedOp_t reduction = op_from_name(op, "reduce_scatter_v");
  Operand input = import_rows(x, "reduce_scatter_v");
  check_sizes(sizes, self.size(), "reduce_scatter_v: sizes");
  require_rows(input, total(sizes), "reduce_scatter_v", "the sum of sizes");
  const std::vector<size_t> counts = counts_of(sizes, input);
  const Shape piece = with_rows(input, sizes[static_cast<size_t>(self.rank())]);
  Output output = open_output(out, input, {piece}, "reduce_scatter_v");
  const zbcclDataType_t type = input.type;
  return launch(
      self, "reduce_scatter_v", {timeout_ms, asynchronous}, input, output, [&](const Arguments& a) {
        return zbcclReduceScatterV(a.send, a.recv, counts.data(), type, reduction, a.comm, a.how);
      });
}

Reply all_to_all_v(Communicator& self, nb::handle x, const Sizes& send_sizes,
                   std::optional<Sizes> recv_sizes, nb::handle out, int64_t timeout_ms,
                   bool asynchronous) {
  Operand input = import_rows(x, "all_to_all_v");
  check_sizes(send_sizes, self.size(), "all_to_all_v: send_sizes");
  require_rows(input, total(send_sizes), "all_to_all_v", "the sum of send_sizes");
  if (!recv_sizes) recv_sizes = exchange(self, "all_to_all_v", timeout_ms, send_sizes, false);
  check_sizes(*recv_sizes, self.size(), "all_to_all_v: recv_sizes");
  const std::vector<size_t> sent = counts_of(send_sizes, input);
  const std::vector<size_t> received = counts_of(*recv_sizes, input);
  Output output = open_output(out, input, {with_rows(input, total(*recv_sizes))}, "all_to_all_v");
  const zbcclDataType_t type = input.type;
  return launch(self, "all_to_all_v", {timeout_ms, asynchronous}, input, output,
                [&](const Arguments& a) {
                  return zbcclAllToAllV(a.send, sent.data(), nullptr, a.recv, received.data(),
                                        nullptr, type, a.comm, a.how);
                });
}

}  // namespace

#define ZBCCL_SIGNATURE(name, arguments)             \
  nb::sig("def " name "(self, " arguments            \
          "timeout_ms: int, asynchronous: bool) -> " \
          "tuple[Flight | None, Tensor | None]")

void bind_operations_v(nb::class_<Communicator>& type) {
  type.def("all_gather_v", &all_gather_v, nb::arg("x").none(), nb::arg("sizes").none(),
           nb::arg("out").none(), nb::arg("timeout_ms"), nb::arg("asynchronous"),
           ZBCCL_SIGNATURE("all_gather_v",
                           "x: object, sizes: list[int] | None, out: object | None, "))
      .def("reduce_scatter_v", &reduce_scatter_v, nb::arg("x").none(), nb::arg("sizes"),
           nb::arg("out").none(), nb::arg("op"), nb::arg("timeout_ms"), nb::arg("asynchronous"),
           ZBCCL_SIGNATURE("reduce_scatter_v",
                           "x: object, sizes: list[int], out: object | None, op: str, "))
      .def("all_to_all_v", &all_to_all_v, nb::arg("x").none(), nb::arg("send_sizes"),
           nb::arg("recv_sizes").none(), nb::arg("out").none(), nb::arg("timeout_ms"),
           nb::arg("asynchronous"),
           ZBCCL_SIGNATURE("all_to_all_v",
                           "x: object, send_sizes: list[int], recv_sizes: "
                           "list[int] | None, out: object | None, "));
}

#undef ZBCCL_SIGNATURE

}  // namespace zbccl::python
