// Experts, routing and what a handle knows.
#include "bindings/python/src/moe.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "bindings/python/src/call.h"
#include "bindings/python/src/error.h"

namespace nb = nanobind;

namespace zbccl::python {

// ---- Experts

std::shared_ptr<Experts> Experts::create(Communicator& communicator, int num_experts,
                                         const std::vector<int32_t>& expert_ranks,
                                         int64_t timeout_ms) {
  if (!expert_ranks.empty() && expert_ranks.size() != static_cast<size_t>(num_experts)) {
    fail(zbcclInvalidArgument, "experts: expert_ranks has " + std::to_string(expert_ranks.size()) +
                                   " elements; there are " + std::to_string(num_experts) +
                                   " experts");
  }
  zbcclMoeConfig_t config = ZBCCL_MOE_CONFIG_INITIALIZER;
  config.num_experts = num_experts;
  config.expert_ranks = expert_ranks.empty() ? nullptr : expert_ranks.data();
  zbcclMoe_t moe = nullptr;
  zbcclComm_t native = communicator.get("experts");
  (void)communicator.run("experts", {timeout_ms, false}, {}, [&](const zbcclCall_t* how) {
    return zbcclMoeCreate(&moe, native, &config, how);
  });
  auto made = std::make_shared<Experts>(communicator, moe);
  communicator.attach(made);
  return made;
}

void Experts::release() {
  communicator_ = nullptr;
  zbcclMoe_t moe = std::exchange(moe_, nullptr);
  // A forked child holds a copy of what is its parent's.
  if (moe == nullptr || getpid() != process_) return;
  const nb::gil_scoped_release released;
  (void)zbcclMoeDestroy(moe);
}

Communicator& Experts::communicator(const char* action) const {
  if (communicator_ == nullptr) {
    fail(zbcclInvalidUsage, std::string(action) + ": the experts or their communicator are closed");
  }
  return *communicator_;
}

zbcclMoe_t Experts::get(const char* action) const {
  (void)communicator(action);
  return moe_;
}

std::vector<int32_t> Experts::local_experts() const {
  int32_t count = 0;
  const int32_t* experts = nullptr;
  check(zbcclMoeGetLocalExperts(get("local_experts"), &count, &experts));
  return {experts, experts + count};
}

std::vector<int32_t> Experts::mask() const {
  std::vector<int32_t> masked(static_cast<size_t>(communicator("mask").size()));
  check(zbcclMoeGetMask(get("mask"), masked.data()));
  return masked;
}

void Experts::set_mask(int rank, bool masked) {
  check(zbcclMoeSetMask(get("set_mask"), rank, masked ? 1 : 0));
}

nb::dict Experts::report() const {
  zbcclMoeReport_t report = ZBCCL_MOE_REPORT_INITIALIZER;
  check(zbcclMoeGetReport(get("report"), &report));
  nb::dict table;
  table["metadata_bytes"] = report.metadata_bytes;
  table["held_bytes"] = report.held_bytes;
  table["staged_bytes"] = report.staged_bytes;
  table["routes"] = report.routes;
  table["dispatches"] = report.dispatches;
  table["combines"] = report.combines;
  table["handles"] = report.handles;
  table["dispatch_blocks"] = report.dispatch_blocks;
  table["combine_blocks"] = report.combine_blocks;
  return table;
}

// ---- Handle

void Handle::close() {
  zbcclMoeHandle_t handle = std::exchange(handle_, nullptr);
  if (handle == nullptr || getpid() != process_) return;
  (void)zbcclMoeHandleDestroy(handle);
}

zbcclMoeHandle_t Handle::get(const char* action) const {
  if (handle_ == nullptr) {
    fail(zbcclInvalidUsage, std::string(action) + ": the handle is closed: route again");
  }
  return handle_;
}

zbcclMoeInfo_t Handle::info() const {
  zbcclMoeInfo_t info = ZBCCL_MOE_INFO_INITIALIZER;
  zbcclMoeHandle_t handle = get("info");
  Outcome outcome;
  {
    const nb::gil_scoped_release released;  // it may wait for other ranks of this process
    outcome = Outcome::of(zbcclMoeHandleGetInfo(handle, &info));
  }
  outcome.check();
  return info;
}

int64_t Handle::allocated_rows() const {
  if (routing_.layout == zbcclMoeExpertMasked) return local_experts_ * routing_.capacity;
  return routing_.capacity > 0 ? routing_.capacity : info().allocated_rows;
}

Operand import_at(int device, nb::handle object, Access access, const std::string& what,
                  Walk walk) {
  Operand operand = Operand::import(object, access, what, walk);
  if (operand.device != device) {
    const auto place = [](int where) {
      return where == kHost ? std::string("in host memory")
                            : "on CUDA device " + std::to_string(where);
    };
    fail(zbcclInvalidArgument,
         what + " lies " + place(operand.device) + ", and topk_idx " + place(device));
  }
  return operand;
}

namespace {

// Indices of experts, (tokens, slots), in one of the two types.
Operand import_indices(nb::handle topk_idx) {
  Operand operand = Operand::import(topk_idx, Access::kRead, "route: topk_idx");
  if (operand.shape.size() != 2) {
    fail(zbcclInvalidArgument,
         "route: topk_idx has shape " + to_string(operand.shape) + "; expected (tokens, slots)");
  }
  if (operand.type != zbcclInt32 && operand.type != zbcclInt64) {
    fail(zbcclInvalidArgument, std::string("route: topk_idx has dtype ") +
                                   zbcclTypeName(operand.type) + "; expected i32 or i64");
  }
  return operand;
}

// A caller's array for `count` elements of `type`, or nothing.
void* import_counts(int device, nb::handle object, int64_t count, zbcclDataType_t type,
                    const std::string& what, std::vector<Operand>* operands) {
  if (object.is_none()) return nullptr;
  Operand operand = import_at(device, object, Access::kWrite, what);
  if (operand.type != type || operand.count != static_cast<size_t>(count)) {
    fail(zbcclInvalidArgument, what + " has " + std::to_string(operand.count) + " elements of " +
                                   zbcclTypeName(operand.type) + "; expected " +
                                   std::to_string(count) + " of " + zbcclTypeName(type));
  }
  operands->push_back(operand);
  return operand.data;
}

nb::tuple route(const std::shared_ptr<Experts>& self, nb::handle topk_idx, int layout,
                int alignment, int64_t capacity, nb::handle recv_counts, nb::handle recv_status,
                nb::handle recv_ranges, bool with_dispatch, int64_t timeout_ms, bool asynchronous) {
  zbcclMoe_t moe = self->get("route");
  const auto local = static_cast<int>(self->local_experts().size());
  std::vector<Operand> operands;
  const Operand indices = import_indices(topk_idx);
  operands.push_back(indices);
  zbcclMoeRouting_t routing = ZBCCL_MOE_ROUTING_INITIALIZER;
  routing.topk_idx = indices.data;
  routing.num_tokens = indices.shape[0];
  routing.num_topk = static_cast<int32_t>(std::min<int64_t>(indices.shape[1], INT32_MAX));
  routing.idx_type = indices.type;
  routing.layout = layout;
  routing.alignment = alignment;
  routing.capacity = capacity;
  routing.recv_counts = static_cast<int32_t*>(import_counts(
      indices.device, recv_counts, local, zbcclInt32, "route: recv_counts", &operands));
  routing.recv_status = static_cast<int64_t*>(
      import_counts(indices.device, recv_status, 3, zbcclInt64, "route: recv_status", &operands));
  const int64_t ranges = static_cast<int64_t>(local) * self->communicator("route").size();
  routing.recv_ranges = static_cast<int64_t*>(import_counts(
      indices.device, recv_ranges, ranges, zbcclInt64, "route: recv_ranges", &operands));
  routing.with_dispatch = with_dispatch ? 1 : 0;
  auto handle = std::make_shared<Handle>(self, routing, local, indices.device);
  if (with_dispatch) handle->keep(operands);
  Operand keeps;  // the place that a running call writes the handle to
  keeps.holder = handle;
  operands.push_back(std::move(keeps));
  FlightPtr flight =
      self->communicator("route").run("route", {timeout_ms, asynchronous}, std::move(operands),
                                      [moe, &routing, &handle](const zbcclCall_t* how) {
                                        return zbcclMoeRoute(moe, &routing, handle->place(), how);
                                      });
  return nb::make_tuple(flight == nullptr ? nb::none() : nb::cast(std::move(flight)),
                        nb::cast(std::move(handle)));
}

nb::dict numbers(const Handle& self) {
  const zbcclMoeInfo_t info = self.info();
  nb::dict table;
  table["rank"] = info.rank;
  table["num_ranks"] = info.num_ranks;
  table["num_experts"] = info.num_experts;
  table["num_local_experts"] = info.num_local_experts;
  table["num_topk"] = info.num_topk;
  table["num_tokens"] = info.num_tokens;
  table["capacity"] = info.capacity;
  table["num_rows"] = info.num_rows;
  table["allocated_rows"] = info.allocated_rows;
  table["needed_capacity"] = info.needed_capacity;
  table["overflow"] = info.overflow;
  table["send_overflow"] = info.send_overflow;
  return table;
}

template <typename T>
nb::object copy_table(const T* data, const Shape& shape, zbcclDataType_t type) {
  if (data == nullptr) return nb::none();
  Output output = allocate(shape, type);
  const size_t bytes = output.operand.count * sizeof(T);
  if (bytes != 0) std::memcpy(output.operand.data, data, bytes);
  return output.made;
}

// One of the arrays of zbcclMoeInfo_t; None where the layout has none.
nb::object table(const Handle& self, const std::string& name) {
  const zbcclMoeInfo_t info = self.info();
  const int64_t local = info.num_local_experts;
  const int64_t ranks = info.num_ranks;
  if (name == "local_experts") return copy_table(info.local_experts, {local}, zbcclInt32);
  if (name == "expert_counts") return copy_table(info.expert_counts, {local}, zbcclInt32);
  if (name == "expert_offsets") return copy_table(info.expert_offsets, {local + 1}, zbcclInt64);
  if (name == "source_offsets") return copy_table(info.source_offsets, {ranks + 1}, zbcclInt64);
  if (name == "source_counts") return copy_table(info.source_counts, {local, ranks}, zbcclInt32);
  if (name == "source_begins") return copy_table(info.source_begins, {local, ranks}, zbcclInt64);
  if (name == "counts") return copy_table(info.counts, {ranks, info.num_experts}, zbcclInt32);
  if (name == "rank_counts") return copy_table(info.rank_counts, {ranks, ranks}, zbcclInt32);
  fail(zbcclInvalidArgument, "a handle has no table '" + name + "'");
}

}  // namespace

void bind_moe(nb::module_& module) {
  nb::class_<Experts>(module, "Experts", "Which rank holds which expert.")
      .def_static("create", &Experts::create, nb::arg("communicator"), nb::arg("num_experts"),
                  nb::arg("expert_ranks"), nb::arg("timeout_ms"),
                  nb::sig("def create(communicator: Communicator, num_experts: int, "
                          "expert_ranks: list[int], timeout_ms: int) -> Experts"))
      .def_prop_ro("closed", &Experts::closed)
      .def("local_experts", &Experts::local_experts)
      .def("mask", &Experts::mask)
      .def("set_mask", &Experts::set_mask, nb::arg("rank"), nb::arg("masked"))
      .def("report", &Experts::report, nb::sig("def report(self) -> dict[str, int]"))
      .def("close", &Experts::release)
      .def("route", &route, nb::arg("topk_idx"), nb::arg("layout"), nb::arg("alignment"),
           nb::arg("capacity"), nb::arg("recv_counts").none(), nb::arg("recv_status").none(),
           nb::arg("recv_ranges").none(), nb::arg("with_dispatch"), nb::arg("timeout_ms"),
           nb::arg("asynchronous"),
           nb::sig("def route(self, topk_idx: object, layout: int, alignment: int, capacity: int, "
                   "recv_counts: object | None, recv_status: object | None, "
                   "recv_ranges: object | None, with_dispatch: bool, timeout_ms: int, "
                   "asynchronous: bool) -> "
                   "tuple[Flight | None, Handle]"));
  nb::class_<Handle> handle(module, "Handle", "Where the rows of one routing go.");
  handle.def("numbers", &numbers, nb::sig("def numbers(self) -> dict[str, int]"))
      .def("table", &table, nb::arg("name"), nb::sig("def table(self, name: str) -> Tensor | None"))
      .def("close", &Handle::close);
  bind_exchanges(module, handle);
}

}  // namespace zbccl::python
