// What a dispatch's arguments must fulfil before any rank moves a row.
#include "base/types.h"
#include "moe/moe.h"
#include "moe/shapes.h"

namespace zbccl::moe {
namespace {

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Scales that quantization gives each row.
int64_t scales_of(int32_t quant, int64_t hidden) {
  if (quant == zbcclMoeQuantInt8) return 1;
  const int64_t groups = divided_up(hidden, ZBCCL_MOE_SCALE_GROUP);
  return quant == zbcclMoeQuantFp8Ue8m0 ? divided_up(groups, 4) : groups;
}

Status check_scales(const zbcclMoeDispatch_t& call, const Handle& handle,
                    const DispatchShape& shape) {
  const bool quantizes = call.quant != zbcclMoeQuantNone;
  if (call.num_scales < 0 || call.num_scales > kMostHidden) {
    return error(Code::kInvalidArgument, "num_scales is {}", call.num_scales);
  }
  if (quantizes && (call.num_scales != 0 || call.x_scales != nullptr)) {
    return error(Code::kInvalidArgument,
                 "x brings scales along and is to be quantized; one of them only");
  }
  if (call.num_scales == 0 && call.x_scales != nullptr) {
    return error(Code::kInvalidArgument, "x_scales are given, and num_scales is 0");
  }
  for (const int64_t stride :
       {call.x_scale_strides[0], call.x_scale_strides[1], call.recv_scale_strides[0],
        call.recv_scale_strides[1], call.recv_scale_strides[2]}) {
    if (stride < 0) return error(Code::kInvalidArgument, "a stride of scales is {}", stride);
  }
  if (call.num_scales > 0 && handle.routing.num_tokens > 0 && call.x_scales == nullptr) {
    return null_pointer("x_scales");
  }
  if (shape.out_scales.per_row > 0 && handle.places.allocated_rows > 0 &&
      call.recv_scales == nullptr) {
    return null_pointer("recv_scales");
  }
  return {};
}

Status check_ranges(const zbcclMoeDispatch_t& call, const Handle& handle,
                    const DispatchShape& shape, int device) {
  const int64_t tokens = handle.routing.num_tokens;
  const int64_t rows = handle.places.allocated_rows;
  const auto slots = static_cast<size_t>(handle.routing.num_topk);
  const size_t row_slots = static_cast<size_t>(rows) * slots;
  const size_t index = type_size(static_cast<DataType>(handle.routing.idx_type));
  Ranges ranges;
  ranges.input(call.x, rows_extent(tokens, shape.stride, shape.row_bytes), 1, "x");
  ranges.input(call.x_scales, static_cast<size_t>(shape.in_scales.extent(tokens)) * 4, 4,
               "x_scales");
  ranges.input(call.topk_weights, static_cast<size_t>(tokens) * slots * 4, 4, "topk_weights");
  ranges.output(call.recv_x, rows_extent(rows, shape.recv_stride, shape.recv_row_bytes), 1,
                "recv_x");
  ranges.output(shape.out_scales.per_row > 0 ? call.recv_scales : nullptr,
                static_cast<size_t>(shape.out_scales.extent(rows)) * 4, 4, "recv_scales");
  ranges.output(call.recv_topk_idx, row_slots * index, 1, "recv_topk_idx");
  ranges.output(call.recv_topk_weights, row_slots * 4, 4, "recv_topk_weights");
  ranges.output(call.recv_row_weights, static_cast<size_t>(rows) * 4, 4, "recv_row_weights");
  ranges.output(call.recv_src_idx, static_cast<size_t>(rows) * 4, 4, "recv_src_idx");
  return ranges.check(device);
}

}  // namespace

Result<DispatchShape> check_dispatch(const zbcclMoeDispatch_t& call, const Handle& handle,
                                     int device) {
  ZBCCL_RETURN_IF_ERROR(handle.check_ready());
  if (call.type < 0 || call.type >= zbcclNumTypes) {
    return error(Code::kInvalidArgument, "{} is not an element type", call.type);
  }
  if (call.quant < zbcclMoeQuantNone || call.quant > zbcclMoeQuantInt8) {
    return error(Code::kInvalidArgument, "{} is not a zbcclMoeQuant_t", call.quant);
  }
  const bool quantizes = call.quant != zbcclMoeQuantNone;
  const auto type = static_cast<DataType>(call.type);
  if (quantizes && type != DataType::kF32 && type != DataType::kF16 && type != DataType::kBf16) {
    return error(Code::kInvalidArgument, "rows of {} cannot be quantized; give f32, f16 or bf16",
                 type_name(type));
  }
  DispatchShape shape;
  const size_t element = type_size(type);
  const size_t recv_element = quantizes ? 1 : element;
  ZBCCL_ASSIGN_OR_RETURN(shape.row_bytes, check_rows(call.hidden, type));
  shape.recv_row_bytes = static_cast<size_t>(call.hidden) * recv_element;
  ZBCCL_ASSIGN_OR_RETURN(shape.stride, check_stride(call.x_stride, call.hidden, element));
  ZBCCL_ASSIGN_OR_RETURN(shape.recv_stride,
                         check_stride(call.recv_x_stride, call.hidden, recv_element));
  const int64_t rows = handle.places.allocated_rows;
  if (call.recv_rows != 0 && call.recv_rows < rows) {
    return error(Code::kInvalidArgument, "the outputs hold {} rows, {} are needed", call.recv_rows,
                 rows);
  }
  const bool sends = handle.routing.num_tokens > 0;
  if (sends && call.x == nullptr) return null_pointer("x");
  if (rows > 0 && call.recv_x == nullptr) return null_pointer("recv_x");
  const int64_t per_row = quantizes ? scales_of(call.quant, call.hidden) : call.num_scales;
  shape.in_scales = ScaleMatrix::plain(call.x_scale_strides, call.num_scales);
  shape.out_scales = ScaleMatrix::of_output(
      call.recv_scale_strides, per_row,
      handle.layout() == Layout::kExpertMasked ? handle.routing.capacity : 0);
  ZBCCL_RETURN_IF_ERROR(check_scales(call, handle, shape));
  if (handle.by_expert() && (call.recv_topk_idx != nullptr || call.recv_topk_weights != nullptr)) {
    return error(Code::kInvalidArgument,
                 "recv_topk_idx and recv_topk_weights belong to zbcclMoeRankMajor");
  }
  if (!handle.by_expert() && call.recv_row_weights != nullptr) {
    return error(Code::kInvalidArgument, "recv_row_weights belongs to the expert layouts");
  }
  ZBCCL_RETURN_IF_ERROR(check_ranges(call, handle, shape, device));
  return shape;
}

}  // namespace zbccl::moe
