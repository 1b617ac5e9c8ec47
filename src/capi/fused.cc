// The fused operations.
#include <zbccl/zbccl.h>

#include <limits>

#include "capi/call.h"
#include "capi/guard.h"
#include "capi/handles.h"

namespace {

using namespace zbccl;
using collectives::Collective;
using collectives::NormCall;

// Strides that were left at zero are those of rows of groups.
std::shared_ptr<const NormCall> norm_of(const zbcclRmsNorm_t& args) {
  auto call = std::make_shared<NormCall>();
  call->norm.type = static_cast<DataType>(args.type);
  call->norm.hidden = args.hidden;
  call->norm.epsilon = args.epsilon;
  call->norm.one_plus_weight = args.one_plus_weight != 0;
  call->norm.form = static_cast<NormCodes>(args.code_form);
  if (call->norm.form == NormCodes::kTensorScale) call->norm.scale = args.scale;
  call->tokens = args.tokens;
  call->residual = args.residual;
  call->weight = args.weight;
  kernels::NormOutputs& to = call->outputs;
  to.residual_out = args.residual_out;
  to.out = args.out;
  to.codes = args.codes;
  to.scales = args.scales;
  to.exponents = args.scales_ue8m0;
  to.row_stride = args.scale_row_stride;
  to.group_stride = args.scale_group_stride;
  if (to.row_stride == 0 && to.group_stride == 0) {
    to.row_stride = args.hidden / kScaleGroup;
    to.group_stride = 1;
  }
  return call;
}

}  // namespace

extern "C" {

zbcclResult_t zbcclAllReduceRmsNorm(const zbcclRmsNorm_t* args, zbcclComm_t comm,
                                    const zbcclCall_t* call) {
  return capi::guard([&]() -> Status {
    Status status = capi::check_pointer(args, "args");
    if (status.ok()) status = capi::check_size(args->size, sizeof *args, "zbcclRmsNorm_t");
    if (!status.ok()) return capi::Group::refuse(std::move(status));
    Collective what;
    what.operation = Operation::kAllReduceRmsNorm;
    what.send = args->x;
    what.type = static_cast<DataType>(args->type);
    what.norm = norm_of(*args);
    // What is too much for this is too much for memory, and refused as that.
    if (__builtin_mul_overflow(args->tokens, args->hidden, &what.count)) {
      what.count = std::numeric_limits<size_t>::max();
    }
    return capi::make(what, comm, call);
  });
}

zbcclResult_t zbcclAllReduceQuantized(const void* send, void* recv, size_t count,
                                      zbcclDataType_t type, zbcclDataType_t code, zbcclComm_t comm,
                                      const zbcclCall_t* call) {
  return capi::guard([&] {
    Collective what{Operation::kAllReduceQuantized, send, recv, count, static_cast<DataType>(type)};
    what.code = static_cast<DataType>(code);
    return capi::make(what, comm, call);
  });
}

}  // extern "C"
