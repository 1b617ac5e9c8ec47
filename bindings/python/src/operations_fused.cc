// all_reduce with RMSNorm, and the all_reduce that sends codes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/python/src/call.h"
#include "bindings/python/src/communicator.h"
#include "bindings/python/src/error.h"
#include "bindings/python/src/operand.h"

namespace nb = nanobind;

namespace zbccl::python {
namespace {

constexpr const char* kName = "all_reduce_rms_norm";
constexpr int64_t kGroup = 128;

// "group" and its like; the last one has its scales as bytes.
struct Form {
  zbcclNormCodes_t codes = zbcclNormNoCodes;
  bool ue8m0 = false;
  bool has_scales() const {
    return codes == zbcclNormGroupScales || codes == zbcclNormGroupPowersOfTwo;
  }
};

Form form_from_name(const std::string& name) {
  if (name == "none") return {};
  if (name == "tensor") return {zbcclNormTensorScale, false};
  if (name == "group") return {zbcclNormGroupScales, false};
  if (name == "power_of_two") return {zbcclNormGroupPowersOfTwo, false};
  if (name == "ue8m0") return {zbcclNormGroupPowersOfTwo, true};
  fail(zbcclInvalidArgument, std::string(kName) + ": codes is '" + name +
                                 "'; known are tensor, group, power_of_two and ue8m0");
}

void require_same(const Operand& x, const Operand& other, const Shape& shape,
                  const std::string& what) {
  if (other.type == x.type && other.shape == shape) return;
  fail(zbcclInvalidArgument, std::string(kName) + ": " + what + " is " + zbcclTypeName(other.type) +
                                 " of shape " + to_string(other.shape) + "; expected " +
                                 zbcclTypeName(x.type) + " of shape " + to_string(shape));
}

Operand as_type(const Operand& x, zbcclDataType_t type) {
  Operand like = x;
  like.type = type;
  return like;
}

// (tokens, groups), or (groups, tokens) where the scales of a group are neighbours. A caller's
// tensor may have longer rows.
Output open_scales(nb::handle out, const Operand& like, int64_t tokens, int64_t groups,
                   bool columns, zbcclRmsNorm_t& args) {
  const Shape shape = columns ? Shape{groups, tokens} : Shape{tokens, groups};
  Output output;
  if (out.is_none()) {
    output = open_output(out, like, {shape}, kName);
  } else {
    output.operand = Operand::import(out, Access::kWrite, std::string(kName) + ": scales_out");
    const Shape& given = output.operand.shape;
    if (output.operand.type != like.type || given.size() != 2 || given[0] != shape[0] ||
        given[1] < shape[1]) {
      fail(zbcclInvalidArgument, std::string(kName) + ": scales_out is " +
                                     zbcclTypeName(output.operand.type) + " of shape " +
                                     to_string(given) + "; expected " + zbcclTypeName(like.type) +
                                     " of shape " + to_string(shape) + ", or with longer rows");
    }
  }
  const auto row = static_cast<size_t>(output.operand.shape[1]);
  args.scale_row_stride = columns ? 1 : row;
  args.scale_group_stride = columns ? row : 1;
  return output;
}

// The flight, and what was allocated: out, codes, scales.
nb::tuple all_reduce_rms_norm(Communicator& self, nb::handle x, nb::handle weight,
                              nb::handle residual, nb::handle residual_out, nb::handle out,
                              const std::string& codes, nb::handle codes_out, nb::handle scales_out,
                              bool columns, bool wants_out, float scale, float epsilon,
                              bool one_plus_weight, int64_t timeout_ms, bool asynchronous) {
  const Form form = form_from_name(codes);
  const std::string name = kName;
  zbcclRmsNorm_t args = ZBCCL_RMS_NORM_INITIALIZER;
  Operand input = Operand::import(x, Access::kRead, name + ": x");
  if (input.shape.empty()) fail(zbcclInvalidArgument, name + ": x is a scalar; expected rows");
  const int64_t hidden = input.shape.back();
  std::vector<Operand> operands;
  const auto keep = [&](Operand operand) -> void* {
    void* const data = operand.data;
    operands.push_back(std::move(operand));
    return data;
  };
  const auto import_like = [&](nb::handle object, Access access, const char* what) -> void* {
    if (object.is_none()) return nullptr;
    Operand operand = Operand::import(object, access, name + ": " + what);
    require_same(input, operand, input.shape, what);
    return keep(std::move(operand));
  };
  Operand factors = Operand::import(weight, Access::kRead, name + ": weight");
  require_same(input, factors, {hidden}, "weight");
  args.x = input.data;
  args.weight = keep(std::move(factors));
  args.residual = import_like(residual, Access::kRead, "residual");
  args.residual_out = import_like(residual_out, Access::kWrite, "residual_out");
  args.type = input.type;
  args.hidden = static_cast<size_t>(hidden);
  args.tokens = hidden > 0 ? input.count / args.hidden : 0;
  args.code_form = form.codes;
  args.scale = scale;
  args.epsilon = epsilon;
  args.one_plus_weight = one_plus_weight ? 1 : 0;
  Output normalised, quantised, scales;
  if (wants_out) {
    normalised = open_output(out, input, {input.shape}, kName);
    args.out = normalised.operand.data;
  }
  if (form.codes != zbcclNormNoCodes) {
    quantised =
        open_output(codes_out, as_type(input, zbcclFloat8e4m3), {input.shape}, name + ": codes");
    args.codes = quantised.operand.data;
  }
  if (form.has_scales()) {
    const Operand like = as_type(input, form.ue8m0 ? zbcclUint8 : zbcclFloat32);
    scales = open_scales(scales_out, like, static_cast<int64_t>(args.tokens), hidden / kGroup,
                         columns, args);
    if (form.ue8m0) {
      args.scales_ue8m0 = static_cast<uint8_t*>(scales.operand.data);
    } else {
      args.scales = static_cast<float*>(scales.operand.data);
    }
  }
  for (Output* output : {&normalised, &quantised, &scales}) {
    if (output->operand.holder != nullptr) operands.push_back(std::move(output->operand));
  }
  operands.push_back(std::move(input));
  zbcclComm_t comm = self.get(kName);
  FlightPtr flight =
      self.run(kName, {timeout_ms, asynchronous}, std::move(operands),
               [&](const zbcclCall_t* how) { return zbcclAllReduceRmsNorm(&args, comm, how); });
  return nb::make_tuple(flight == nullptr ? nb::none() : nb::cast(std::move(flight)),
                        std::move(normalised.made), std::move(quantised.made),
                        std::move(scales.made));
}

Reply all_reduce_quantized(Communicator& self, nb::handle x, nb::handle out,
                           const std::string& code, int64_t timeout_ms, bool asynchronous) {
  const bool in_place = out.is_none();
  const zbcclDataType_t code_type = type_from_name(code);
  Operand input =
      Operand::import(x, in_place ? Access::kWrite : Access::kRead, "all_reduce_quantized: x");
  Output output;
  if (in_place) {
    output.operand = input;
  } else {
    output = open_output(out, input, {input.shape}, "all_reduce_quantized");
  }
  const size_t count = input.count;
  const zbcclDataType_t type = input.type;
  return launch(self, "all_reduce_quantized", {timeout_ms, asynchronous}, input, output,
                [&](const Arguments& a) {
                  return zbcclAllReduceQuantized(a.send, a.recv, count, type, code_type, a.comm,
                                                 a.how);
                });
}

}  // namespace

void bind_operations_fused(nb::class_<Communicator>& type) {
  type.def("all_reduce_rms_norm", &all_reduce_rms_norm, nb::arg("x").none(),
           nb::arg("weight").none(), nb::arg("residual").none(), nb::arg("residual_out").none(),
           nb::arg("out").none(), nb::arg("codes"), nb::arg("codes_out").none(),
           nb::arg("scales_out").none(), nb::arg("columns"), nb::arg("wants_out"), nb::arg("scale"),
           nb::arg("epsilon"), nb::arg("one_plus_weight"), nb::arg("timeout_ms"),
           nb::arg("asynchronous"),
           nb::sig("def all_reduce_rms_norm(self, x: object, weight: object, residual: object | "
                   "None, residual_out: object | None, out: object | None, codes: str, codes_out: "
                   "object | None, scales_out: object | None, columns: bool, wants_out: bool, "
                   "scale: float, epsilon: float, one_plus_weight: bool, timeout_ms: int, "
                   "asynchronous: bool) -> tuple[Flight | None, Tensor | None, Tensor | None, "
                   "Tensor | None]"));
  type.def("all_reduce_quantized", &all_reduce_quantized, nb::arg("x").none(),
           nb::arg("out").none(), nb::arg("code"), nb::arg("timeout_ms"), nb::arg("asynchronous"),
           nb::sig("def all_reduce_quantized(self, x: object, out: object | None, code: str, "
                   "timeout_ms: int, asynchronous: bool) -> tuple[Flight | None, Tensor | None]"));
}

}  // namespace zbccl::python
