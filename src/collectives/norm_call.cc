// What all_reduce_rms_norm accepts, and what the ranks compare of it.
#include <bit>
#include <cmath>
#include <utility>

#include "collectives/collective.h"

namespace zbccl::collectives {
namespace {

constexpr size_t kMostHidden = 16384;
constexpr const char* kName = "all_reduce_rms_norm";

bool scales_groups(NormCodes form) {
  return form == NormCodes::kGroupScales || form == NormCodes::kGroupPowersOfTwo;
}

Status check_shape(const NormCall& call) {
  const kernels::Norm& norm = call.norm;
  if (norm.type != DataType::kBf16 && norm.type != DataType::kF16) {
    return error(Code::kInvalidArgument, "{}: the element type is {}; bf16 and f16 are served",
                 kName, type_name(norm.type));
  }
  if (static_cast<unsigned>(norm.form) >= kNumNormCodes) {
    return error(Code::kInvalidArgument, "{}: {} is not a form of codes", kName,
                 static_cast<int>(norm.form));
  }
  const size_t grain = scales_groups(norm.form) ? kScaleGroup : 8;
  if (norm.hidden == 0 || norm.hidden % grain != 0 || norm.hidden > kMostHidden) {
    return error(Code::kInvalidArgument,
                 "{}: hidden is {}; give a multiple of {} up to {} (of 128 where groups have "
                 "scales, else of 8)",
                 kName, norm.hidden, grain, kMostHidden);
  }
  if (!(norm.epsilon >= 0) || std::isinf(norm.epsilon)) {
    return error(Code::kInvalidArgument, "{}: epsilon is {}; give a finite number from 0", kName,
                 norm.epsilon);
  }
  if (norm.form == NormCodes::kTensorScale && (!std::isnormal(norm.scale) || norm.scale < 0)) {
    return error(Code::kInvalidArgument, "{}: the scale is {}; give a positive normal number",
                 kName, norm.scale);
  }
  return {};
}

Status check_outputs(const NormCall& call) {
  const NormCodes form = call.norm.form;
  const kernels::NormOutputs& to = call.outputs;
  const bool codes = form != NormCodes::kNone;
  const auto refuse = [](const char* what) {
    return error(Code::kInvalidArgument, "{}: {}", kName, what);
  };
  // Outputs of no rows may be null, as empty tensors are.
  if (call.tokens > 0 && to.residual_out == nullptr && to.out == nullptr && !codes) {
    return refuse("no output is asked for; give residual_out, out or codes");
  }
  if (!codes && to.codes != nullptr) return refuse("codes are given, but code_form asks for none");
  if (!scales_groups(form) && to.scales != nullptr) {
    return refuse("scales are given, but code_form has none for groups");
  }
  if (form != NormCodes::kGroupPowersOfTwo && to.exponents != nullptr) {
    return refuse("scales_ue8m0 is given, but the scales are no powers of two");
  }
  if (call.tokens == 0) return {};
  if (call.weight == nullptr) return refuse("the weight is a null pointer");
  if (codes && to.codes == nullptr) {
    return refuse("code_form asks for codes, which are a null pointer");
  }
  if (!scales_groups(form)) return {};
  if (to.scales == nullptr && to.exponents == nullptr) {
    return refuse("the groups' scales are a null pointer");
  }
  const size_t groups = call.norm.hidden / kScaleGroup;
  const bool by_rows = to.group_stride == 1 && to.row_stride >= groups;
  const bool by_columns = to.row_stride == 1 && to.group_stride >= call.tokens;
  if (by_rows || by_columns) return {};
  return error(Code::kInvalidArgument,
               "{}: scale_row_stride is {} and scale_group_stride {}; give (at least {}, 1) for "
               "scales in rows, or (1, at least {}) in columns",
               kName, to.row_stride, to.group_stride, groups, call.tokens);
}

struct Range {
  const char* name;
  const void* data;
  size_t bytes;
};

bool overlap(const Range& a, const Range& b) {
  const auto first = reinterpret_cast<uintptr_t>(a.data);
  const auto second = reinterpret_cast<uintptr_t>(b.data);
  return a.data != nullptr && b.data != nullptr && a.bytes > 0 && b.bytes > 0 &&
         first < second + b.bytes && second < first + a.bytes;
}

// An output may be an input where each row is read before it is written, and by nobody else.
Status check_ranges(const Collective& collective) {
  const NormCall& call = *collective.norm;
  const kernels::NormOutputs& to = call.outputs;
  const size_t rows = collective.count * type_size(collective.type);
  const size_t groups = call.norm.hidden / kScaleGroup;
  const size_t scales =
      !scales_groups(call.norm.form) || call.tokens == 0
          ? 0
          : (call.tokens - 1) * to.row_stride + (groups - 1) * to.group_stride + 1;
  const Range x = {"x", collective.send, rows};
  const Range residual = {"residual", call.residual, rows};
  const Range weight = {"weight", call.weight,
                        call.tokens == 0 ? 0 : call.norm.hidden * type_size(collective.type)};
  const Range inputs[] = {x, residual, weight};
  const Range outputs[] = {{"residual_out", to.residual_out, rows},
                           {"out", to.out, rows},
                           {"codes", to.codes, collective.count},
                           {"scales", to.scales, scales * sizeof(float)},
                           {"scales_ue8m0", to.exponents, scales}};
  const auto refuse = [](const Range& a, const Range& b) {
    return error(Code::kInvalidArgument,
                 "{}: {} at {} and {} at {} overlap; out and residual_out may be x, and "
                 "residual_out may be residual, from their first byte on",
                 kName, a.name, a.data, b.name, b.data);
  };
  for (size_t o = 0; o < std::size(outputs); ++o) {
    for (size_t i = 0; i < std::size(inputs); ++i) {
      const bool allowed =
          inputs[i].data == outputs[o].data && ((i == 0 && o < 2) || (i == 1 && o == 0));
      if (!allowed && overlap(inputs[i], outputs[o])) return refuse(inputs[i], outputs[o]);
    }
    for (size_t other = 0; other < o; ++other) {
      if (overlap(outputs[other], outputs[o])) return refuse(outputs[other], outputs[o]);
    }
  }
  return {};
}

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9fb21c651e98df25ULL;
  return x ^ (x >> 32);
}

}  // namespace

Status check_norm(const Collective& call) {
  ZBCCL_RETURN_IF_ERROR(check_shape(*call.norm));
  ZBCCL_RETURN_IF_ERROR(check_outputs(*call.norm));
  return check_ranges(call);
}

void describe_norm(const NormCall& call, transport::Signature* signature) {
  const kernels::NormOutputs& to = call.outputs;
  // Of no rows, where a pointer says nothing, none is shown.
  const auto flag = [&](bool set, transport::NormFlag value) {
    return set && call.tokens > 0 ? unsigned{value} : 0U;
  };
  signature->red_op = static_cast<uint8_t>(
      static_cast<unsigned>(call.norm.form) |
      flag(call.residual != nullptr, transport::kNormResidual) |
      flag(to.residual_out != nullptr, transport::kNormResidualOut) |
      flag(to.out != nullptr, transport::kNormOut) |
      flag(to.scales != nullptr, transport::kNormScales) |
      flag(to.exponents != nullptr, transport::kNormExponents) |
      (call.norm.one_plus_weight ? unsigned{transport::kNormOnePlusWeight} : 0U));
  signature->root = static_cast<int32_t>(call.norm.hidden);
  signature->layout = mix(mix(uint64_t{std::bit_cast<uint32_t>(call.norm.epsilon)} << 32 |
                              std::bit_cast<uint32_t>(call.norm.scale)) ^
                          mix(to.row_stride) ^ mix(to.group_stride << 1));
}

}  // namespace zbccl::collectives
