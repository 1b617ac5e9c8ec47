// What a combine's arguments must fulfil before any rank reads a row.
#include "base/types.h"
#include "moe/moe.h"
#include "moe/shapes.h"

namespace zbccl::moe {
namespace {

Status check_ranges(const zbcclMoeCombine_t& call, const Handle& handle, const CombineShape& shape,
                    int device) {
  const int64_t tokens = handle.routing.num_tokens;
  const size_t slot_bytes = static_cast<size_t>(handle.routing.num_topk) * sizeof(float);
  const size_t bias_bytes = static_cast<size_t>(tokens) * shape.row_bytes;
  Ranges ranges;
  ranges.input(call.y, rows_extent(handle.used_rows(), shape.stride, shape.row_bytes), 1, "y");
  ranges.input(call.topk_weights, static_cast<size_t>(tokens) * slot_bytes, sizeof(float),
               "topk_weights");
  ranges.input(call.bias[0], bias_bytes, 1, "bias[0]");
  ranges.input(call.bias[1], bias_bytes, 1, "bias[1]");
  ranges.input(call.recv_topk_weights, static_cast<size_t>(handle.used_rows()) * slot_bytes,
               sizeof(float), "recv_topk_weights");
  ranges.output(call.out, rows_extent(tokens, shape.out_stride, shape.row_bytes), 1, "out");
  ranges.output(call.combined_topk_weights, static_cast<size_t>(tokens) * slot_bytes, sizeof(float),
                "combined_topk_weights");
  return ranges.check(device);
}

}  // namespace

Result<CombineShape> check_combine(const zbcclMoeCombine_t& call, const Handle& handle,
                                   int device) {
  ZBCCL_RETURN_IF_ERROR(handle.check_ready());
  if (call.type != zbcclFloat32 && call.type != zbcclFloat16 && call.type != zbcclBfloat16) {
    return error(Code::kInvalidArgument,
                 "rows of type {} cannot be added up; give f32, f16 or bf16", call.type);
  }
  const auto type = static_cast<DataType>(call.type);
  const size_t element = type_size(type);
  CombineShape shape;
  ZBCCL_ASSIGN_OR_RETURN(shape.row_bytes, check_rows(call.hidden, type));
  ZBCCL_ASSIGN_OR_RETURN(shape.stride, check_stride(call.y_stride, call.hidden, element));
  ZBCCL_ASSIGN_OR_RETURN(shape.out_stride, check_stride(call.out_stride, call.hidden, element));
  if (handle.used_rows() > 0 && call.y == nullptr) return null_pointer("y");
  if (handle.routing.num_tokens > 0 && call.out == nullptr) return null_pointer("out");
  if (!handle.by_expert() && (call.topk_weights != nullptr || call.pre_reduce != 0)) {
    return error(Code::kInvalidArgument,
                 "topk_weights and pre_reduce belong to the expert layouts; a row of "
                 "zbcclMoeRankMajor is the sum over its rank's experts");
  }
  if (handle.by_expert() &&
      (call.recv_topk_weights != nullptr || call.combined_topk_weights != nullptr)) {
    return error(Code::kInvalidArgument,
                 "recv_topk_weights and combined_topk_weights belong to zbcclMoeRankMajor");
  }
  ZBCCL_RETURN_IF_ERROR(check_ranges(call, handle, shape, device));
  return shape;
}

}  // namespace zbccl::moe
