// Dispatch and combine: takes the tensors, checks that they hold what the calls read and write.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <utility>

#include "bindings/python/src/call.h"
#include "bindings/python/src/error.h"
#include "bindings/python/src/moe.h"

namespace nb = nanobind;

namespace zbccl::python {

// ---- the two phases

nb::object Exchange::start(const std::shared_ptr<Exchange>& exchange, Mode mode,
                           int64_t timeout_ms) {
  Communicator& communicator = exchange->handle_->communicator(exchange->name_);
  const zbcclMoePhase_t phase = mode == Mode::kSend ? zbcclMoeSendPhase : zbcclMoeBothPhases;
  std::vector<Operand> operands = exchange->placed_operands();
  Operand keeps;
  keeps.holder = exchange;
  operands.push_back(std::move(keeps));
  FlightPtr flight = communicator.run(
      exchange->name_, {timeout_ms, mode == Mode::kAsynchronous}, std::move(operands),
      [&](const zbcclCall_t* how) { return exchange->call_(phase, how); });
  if (flight != nullptr) return nb::cast(std::move(flight));
  if (mode != Mode::kSend) return nb::none();
  communicator.hold(exchange);
  return nb::cast(exchange);
}

// On a GPU the communicator has to know which stream they are used on.
std::vector<Operand> Exchange::placed_operands() const {
  return handle_->device() == kHost ? std::vector<Operand>() : operands_;
}

void Exchange::receive(const std::shared_ptr<Exchange>& exchange, int64_t timeout_ms) {
  if (exchange->received_) {
    fail(zbcclInvalidUsage, std::string(exchange->name_) + ": it was received already");
  }
  Communicator& communicator = exchange->handle_->communicator(exchange->name_);
  (void)exchange->handle_->get(exchange->name_);  // else its place may be another handle's by now
  (void)communicator.run(
      exchange->name_, {timeout_ms, false}, exchange->placed_operands(),
      [&](const zbcclCall_t* how) { return exchange->call_(zbcclMoeReceivePhase, how); });
  // After a failure the library may still use the tensors, until the communicator is closed.
  exchange->received_ = true;
  exchange->operands_.clear();
  communicator.let_go(exchange);
}

namespace {

struct Rows {
  int64_t count = 0;
  int64_t width = 0;
  int64_t stride = 0;  // 0: one behind the other
};

[[noreturn]] void fail_shape(const std::string& what, const Operand& operand,
                             const std::string& expected) {
  fail(zbcclInvalidArgument,
       what + " has shape " + to_string(operand.shape) + "; expected " + expected);
}

// A matrix, or with `stacked` one matrix for each expert at even distances, whose rows each lie in
// one piece.
Rows rows_of(const Operand& operand, bool stacked, const std::string& what) {
  const size_t dimensions = operand.shape.size();
  if (dimensions != 2 && !(stacked && dimensions == 3)) {
    fail_shape(what, operand, stacked ? "(experts, rows, width)" : "(rows, width)");
  }
  const Shape strides = operand.element_strides();
  const int64_t width = operand.shape.back();
  const int64_t inner = operand.shape[dimensions - 2];
  Rows rows{inner, width, strides[dimensions - 2]};
  if (dimensions == 3) {
    rows.count *= operand.shape[0];
    if (inner == 1) rows.stride = strides[0];
    if (inner > 1 && operand.shape[0] > 1 && strides[0] != inner * rows.stride) {
      fail(zbcclInvalidArgument, what + ": the rows of its experts do not lie at even distances");
    }
  }
  if (width > 1 && strides.back() != 1) {
    fail(zbcclInvalidArgument, what + ": the elements of a row do not lie side by side");
  }
  if (rows.count <= 1 || rows.stride == width) rows.stride = 0;
  return rows;
}

// Collects the arguments of one call: what it reads, and what it writes, given or made.
class Gatherer {
 public:
  Gatherer(const Handle& handle, std::string name)
      : handle_(handle),
        name_(std::move(name)),
        stacked_(handle.routing().layout == zbcclMoeExpertMasked),
        rows_(handle.allocated_rows()) {}

  bool stacked() const noexcept { return stacked_; }
  int64_t rows() const noexcept { return rows_; }
  std::string what(const char* argument) const { return name_ + ": " + argument; }

  // (rows, ...) or, where there is one block for each expert, (experts, capacity, ...).
  Shape row_shape(std::initializer_list<int64_t> rest) const {
    Shape shape = {rows_};
    if (stacked_) shape = {handle_.local_experts(), handle_.routing().capacity};
    shape.insert(shape.end(), rest);
    return shape;
  }

  Operand read(nb::handle object, const char* argument, Walk walk = Walk::kStrided) {
    Operand operand = import_at(handle_.device(), object, Access::kRead, what(argument), walk);
    operands_.push_back(operand);
    return operand;
  }

  const float* read_floats(nb::handle object, int64_t rows, const char* argument) {
    if (object.is_none()) return nullptr;
    const Operand operand = read(object, argument, Walk::kRowMajor);
    require_type(operand, zbcclFloat32, argument);
    const int64_t topk = handle_.routing().num_topk;
    const Shape expected = {rows, topk};
    if (operand.shape != expected) fail_shape(what(argument), operand, to_string(expected));
    return static_cast<const float*>(operand.data);
  }

  // None: not wanted; True: made here; else the caller's, of the same shape, of more rows where
  // there is one matrix, or with the experts' matrices laid end to end. `slot` is its place in the
  // answer.
  Operand write(nb::handle object, size_t slot, const Shape& shape, zbcclDataType_t type,
                const char* argument, Walk walk = Walk::kRowMajor) {
    if (object.is_none()) return {};
    Operand operand;
    if (object.ptr() == Py_True) {
      Output output = allocate(shape, type, handle_.device());
      made_[slot] = std::move(output.made);
      operand = std::move(output.operand);
    } else {
      operand = import_at(handle_.device(), object, Access::kWrite, what(argument), walk);
      require_type(operand, type, argument);
      if (!holds(operand.shape, shape)) fail_shape(what(argument), operand, to_string(shape));
    }
    operands_.push_back(operand);
    return operand;
  }

  void require_type(const Operand& operand, zbcclDataType_t type, const char* argument) const {
    if (operand.type == type) return;
    fail(zbcclInvalidArgument, what(argument) + " has dtype " + zbcclTypeName(operand.type) +
                                   "; expected " + zbcclTypeName(type));
  }

  // The rows that the outputs hold: as many as the first of them, recv_x, has.
  void require_rows(int64_t rows, const char* argument) {
    if (given_rows_ < 0) {
      given_rows_ = rows;
      if (!stacked_) rows_ = rows;
    }
    if (rows == given_rows_) return;
    fail(zbcclInvalidArgument, what(argument) + " has " + std::to_string(rows) +
                                   " rows, but recv_x has " + std::to_string(given_rows_));
  }

  std::vector<Operand> take_operands() { return std::move(operands_); }
  nb::tuple made() {
    return nb::make_tuple(made_[0], made_[1], made_[2], made_[3], made_[4], made_[5]);
  }

 private:
  bool holds(const Shape& given, const Shape& needed) const {
    if (given == needed) return true;
    if (given.size() != needed.size() || stacked_) return false;
    return given[0] >= needed[0] &&
           Shape(given.begin() + 1, given.end()) == Shape(needed.begin() + 1, needed.end());
  }

  const Handle& handle_;
  std::string name_;
  bool stacked_;
  int64_t rows_;
  int64_t given_rows_ = -1;
  std::vector<Operand> operands_;
  nb::object made_[6] = {nb::none(), nb::none(), nb::none(), nb::none(), nb::none(), nb::none()};
};

struct Scales {
  int64_t count = 0;
  zbcclDataType_t type = zbcclFloat32;
};

constexpr int64_t divided_up(int64_t number, int64_t by) { return (number + by - 1) / by; }

Scales scales_of(int quant, int64_t hidden) {
  const int64_t groups = divided_up(hidden, ZBCCL_MOE_SCALE_GROUP);
  switch (quant) {
    case zbcclMoeQuantFp8:
    case zbcclMoeQuantFp8Pow2: return {groups, zbcclFloat32};
    case zbcclMoeQuantFp8Ue8m0: return {divided_up(groups, 4), zbcclInt32};
    case zbcclMoeQuantInt8: return {1, zbcclFloat32};
    default: return {};
  }
}

zbcclDataType_t code_type(int quant, zbcclDataType_t type) {
  if (quant == zbcclMoeQuantNone) return type;
  return quant == zbcclMoeQuantInt8 ? zbcclInt8 : zbcclFloat8e4m3;
}

// Scales that come with the rows: (tokens, scales) of any four-byte type.
Scales read_scales(Gatherer& gather, nb::handle object, zbcclMoeDispatch_t* dispatch,
                   int64_t tokens) {
  const Operand scales = gather.read(object, "x_scales");
  if (scales.shape.size() != 2 || scales.shape[0] != tokens) {
    fail_shape(gather.what("x_scales"), scales, "(" + std::to_string(tokens) + ", scales)");
  }
  if (zbcclTypeSize(scales.type) != 4) {
    fail(zbcclInvalidArgument, gather.what("x_scales") + " has dtype " +
                                   zbcclTypeName(scales.type) + "; expected f32, i32 or u32");
  }
  const Shape strides = scales.element_strides();
  dispatch->x_scales = scales.data;
  dispatch->x_scale_strides[0] = strides[0];
  dispatch->x_scale_strides[1] = strides[1];
  dispatch->num_scales = static_cast<int32_t>(scales.shape[1]);
  return {scales.shape[1], scales.type};
}

// Scales of the rows that arrive: (rows, scales), in memory either so or `transposed`.
void write_scales(Gatherer& gather, nb::handle object, Scales scales, bool transposed,
                  zbcclMoeDispatch_t* dispatch) {
  Shape shape = gather.row_shape({scales.count});
  const size_t rows = shape.size() - 2;
  const bool swapped = transposed && object.ptr() == Py_True;  // the answer is in memory's order
  if (swapped) std::swap(shape[rows], shape[rows + 1]);
  Operand operand = gather.write(object, 1, shape, scales.type, "recv_scales", Walk::kStrided);
  Shape strides = operand.element_strides();
  if (swapped) {
    std::swap(operand.shape[rows], operand.shape[rows + 1]);
    std::swap(strides[rows], strides[rows + 1]);
  }
  if (!gather.stacked()) gather.require_rows(operand.shape[0], "recv_scales");
  dispatch->recv_scales = operand.data;
  dispatch->recv_scale_strides[0] = gather.stacked() ? strides[0] : 0;
  dispatch->recv_scale_strides[1] = strides[rows];
  dispatch->recv_scale_strides[2] = strides[rows + 1];
}

nb::tuple dispatch(const std::shared_ptr<Handle>& self, nb::handle x, nb::handle x_scales,
                   int quant, bool zero_padding, bool transposed, nb::handle topk_weights,
                   nb::handle recv_x, nb::handle recv_scales, nb::handle recv_topk_idx,
                   nb::handle recv_topk_weights, nb::handle recv_row_weights,
                   nb::handle recv_src_idx, int mode, int64_t timeout_ms) {
  zbcclMoeHandle_t handle = self->get("dispatch");
  const zbcclMoeRouting_t& routing = self->routing();
  Gatherer gather(*self, "dispatch");
  zbcclMoeDispatch_t call = ZBCCL_MOE_DISPATCH_INITIALIZER;
  const Operand input = gather.read(x, "x");
  const Rows rows = rows_of(input, false, gather.what("x"));
  if (rows.count != routing.num_tokens) {
    fail_shape(gather.what("x"), input, "(" + std::to_string(routing.num_tokens) + ", hidden)");
  }
  call.type = input.type;
  call.quant = quant;
  call.zero_padding = zero_padding ? 1 : 0;
  call.hidden = rows.width;
  call.x = input.data;
  call.x_stride = rows.stride;
  Scales scales = scales_of(quant, rows.width);
  if (!x_scales.is_none()) scales = read_scales(gather, x_scales, &call, routing.num_tokens);

  const Operand output = gather.write(recv_x, 0, gather.row_shape({rows.width}),
                                      code_type(quant, input.type), "recv_x", Walk::kStrided);
  const Rows received = rows_of(output, gather.stacked(), gather.what("recv_x"));
  gather.require_rows(received.count, "recv_x");
  call.recv_x = output.data;
  call.recv_rows = received.count;
  call.recv_x_stride = received.stride;
  if (scales.count > 0) write_scales(gather, recv_scales, scales, transposed, &call);

  call.topk_weights = gather.read_floats(topk_weights, routing.num_tokens, "topk_weights");
  const int64_t topk = routing.num_topk;
  const auto write = [&](nb::handle object, size_t slot, std::initializer_list<int64_t> rest,
                         zbcclDataType_t type, const char* argument) {
    const Operand operand = gather.write(object, slot, gather.row_shape(rest), type, argument);
    if (operand.holder != nullptr && !gather.stacked()) {
      gather.require_rows(operand.shape[0], argument);
    }
    return operand.data;
  };
  call.recv_topk_idx = write(recv_topk_idx, 2, {topk},
                             static_cast<zbcclDataType_t>(routing.idx_type), "recv_topk_idx");
  call.recv_topk_weights =
      static_cast<float*>(write(recv_topk_weights, 3, {topk}, zbcclFloat32, "recv_topk_weights"));
  call.recv_row_weights =
      static_cast<float*>(write(recv_row_weights, 4, {}, zbcclFloat32, "recv_row_weights"));
  call.recv_src_idx = static_cast<int32_t*>(write(recv_src_idx, 5, {}, zbcclInt32, "recv_src_idx"));

  const auto exchange = std::make_shared<Exchange>(
      "dispatch", self, gather.take_operands(),
      [handle, call](zbcclMoePhase_t phase, const zbcclCall_t* how) mutable {
        call.phase = phase;
        return zbcclMoeDispatch(handle, &call, how);
      });
  return nb::make_tuple(Exchange::start(exchange, static_cast<Mode>(mode), timeout_ms),
                        gather.made());
}

nb::tuple combine(const std::shared_ptr<Handle>& self, nb::handle y, nb::handle topk_weights,
                  nb::handle bias_0, nb::handle bias_1, nb::handle out, bool pre_reduce,
                  nb::handle recv_topk_weights, nb::handle combined_topk_weights, int mode,
                  int64_t timeout_ms) {
  zbcclMoeHandle_t handle = self->get("combine");
  const zbcclMoeRouting_t& routing = self->routing();
  const int64_t tokens = routing.num_tokens;
  Gatherer gather(*self, "combine");
  zbcclMoeCombine_t call = ZBCCL_MOE_COMBINE_INITIALIZER;
  const Operand input = gather.read(y, "y");
  const Rows rows = rows_of(input, gather.stacked(), gather.what("y"));
  if (gather.stacked() ? rows.count != gather.rows() : rows.count < gather.rows()) {
    fail_shape(gather.what("y"), input, to_string(gather.row_shape({rows.width})));
  }
  call.type = input.type;
  call.hidden = rows.width;
  call.y = input.data;
  call.y_stride = rows.stride;
  call.topk_weights = gather.read_floats(topk_weights, tokens, "topk_weights");
  const Shape expected = {tokens, rows.width};
  const nb::handle biases[2] = {bias_0, bias_1};
  for (size_t i = 0; i < 2; ++i) {
    if (biases[i].is_none()) continue;
    const Operand bias = gather.read(biases[i], "bias", Walk::kRowMajor);
    gather.require_type(bias, input.type, "bias");
    if (bias.shape != expected) fail_shape(gather.what("bias"), bias, to_string(expected));
    call.bias[i] = bias.data;
  }
  const Operand output = gather.write(out, 0, expected, input.type, "out", Walk::kStrided);
  if (output.shape != expected) fail_shape(gather.what("out"), output, to_string(expected));
  call.out = output.data;
  call.out_stride = rows_of(output, false, gather.what("out")).stride;
  call.pre_reduce = pre_reduce ? 1 : 0;
  if (!recv_topk_weights.is_none()) {
    const Operand weights = gather.read(recv_topk_weights, "recv_topk_weights", Walk::kRowMajor);
    gather.require_type(weights, zbcclFloat32, "recv_topk_weights");
    if (weights.shape.size() != 2 || weights.shape[0] < gather.rows() ||
        weights.shape[1] != routing.num_topk) {
      fail_shape(gather.what("recv_topk_weights"), weights,
                 to_string({gather.rows(), routing.num_topk}));
    }
    call.recv_topk_weights = static_cast<const float*>(weights.data);
  }
  const Operand combined = gather.write(combined_topk_weights, 1, {tokens, routing.num_topk},
                                        zbcclFloat32, "combined_topk_weights");
  call.combined_topk_weights = static_cast<float*>(combined.data);

  const auto exchange = std::make_shared<Exchange>(
      "combine", self, gather.take_operands(),
      [handle, call](zbcclMoePhase_t phase, const zbcclCall_t* how) mutable {
        call.phase = phase;
        return zbcclMoeCombine(handle, &call, how);
      });
  return nb::make_tuple(Exchange::start(exchange, static_cast<Mode>(mode), timeout_ms),
                        gather.made());
}

}  // namespace

void bind_exchanges(nb::module_& module, nb::class_<Handle>& handle) {
  nb::class_<Exchange>(module, "Exchange", "A dispatch or a combine between its two phases.")
      .def_prop_ro("received", &Exchange::received)
      .def("receive", &Exchange::receive, nb::arg("timeout_ms"),
           "Blocks until the outputs are complete; once.",
           nb::sig("def receive(self, timeout_ms: int) -> None"));
  handle
      .def("dispatch", &dispatch, nb::arg("x"), nb::arg("x_scales").none(), nb::arg("quant"),
           nb::arg("zero_padding"), nb::arg("transposed"), nb::arg("topk_weights").none(),
           nb::arg("recv_x"), nb::arg("recv_scales").none(), nb::arg("recv_topk_idx").none(),
           nb::arg("recv_topk_weights").none(), nb::arg("recv_row_weights").none(),
           nb::arg("recv_src_idx").none(), nb::arg("mode"), nb::arg("timeout_ms"),
           nb::sig("def dispatch(self, x: object, x_scales: object | None, quant: int, "
                   "zero_padding: bool, transposed: bool, topk_weights: object | None, "
                   "recv_x: object, recv_scales: object | None, recv_topk_idx: object | None, "
                   "recv_topk_weights: object | None, recv_row_weights: object | None, "
                   "recv_src_idx: object | None, mode: int, timeout_ms: int) -> "
                   "tuple[Flight | Exchange | None, tuple[Tensor | None, ...]]"))
      .def("combine", &combine, nb::arg("y"), nb::arg("topk_weights").none(),
           nb::arg("bias_0").none(), nb::arg("bias_1").none(), nb::arg("out"),
           nb::arg("pre_reduce"), nb::arg("recv_topk_weights").none(),
           nb::arg("combined_topk_weights").none(), nb::arg("mode"), nb::arg("timeout_ms"),
           nb::sig("def combine(self, y: object, topk_weights: object | None, "
                   "bias_0: object | None, bias_1: object | None, out: object, "
                   "pre_reduce: bool, recv_topk_weights: object | None, "
                   "combined_topk_weights: object | None, mode: int, timeout_ms: int) -> "
                   "tuple[Flight | Exchange | None, tuple[Tensor | None, ...]]"));
}

}  // namespace zbccl::python
