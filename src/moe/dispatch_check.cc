// What a dispatch's arguments must fulfil before any rank moves a row.
#include "base/types.h"
#include "moe/dispatch.h"

namespace zbccl::moe {
namespace {

constexpr int64_t kMostHidden = int64_t{1} << 30;

Status null_pointer(const char* name) {
  return error(Code::kInvalidArgument, "`{}` is a null pointer", name);
}

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Scales that quantization gives each row.
int64_t scales_of(int32_t quant, int64_t hidden) {
  if (quant == zbcclMoeQuantInt8) return 1;
  const int64_t groups = divided_up(hidden, ZBCCL_MOE_SCALE_GROUP);
  return quant == zbcclMoeQuantFp8Ue8m0 ? divided_up(groups, 4) : groups;
}

}  // namespace

Status Dispatcher::check() {
  ZBCCL_RETURN_IF_ERROR(handle_.check_ready());
  if (call_.type < 0 || call_.type >= zbcclNumTypes) {
    return error(Code::kInvalidArgument, "{} is not an element type", call_.type);
  }
  if (call_.quant < zbcclMoeQuantNone || call_.quant > zbcclMoeQuantInt8) {
    return error(Code::kInvalidArgument, "{} is not a zbcclMoeQuant_t", call_.quant);
  }
  const auto type = static_cast<DataType>(call_.type);
  if (quantizes_ && type != DataType::kF32 && type != DataType::kF16 && type != DataType::kBf16) {
    return error(Code::kInvalidArgument, "rows of {} cannot be quantized; give f32, f16 or bf16",
                 type_name(type));
  }
  if (call_.hidden < 1 || call_.hidden > kMostHidden) {
    return error(Code::kInvalidArgument, "hidden is {}, expected 1 to {}", call_.hidden,
                 kMostHidden);
  }
  const auto hidden = static_cast<size_t>(call_.hidden);
  const size_t element = type_size(type);
  row_bytes_ = hidden * element;
  if (row_bytes_ % 16 != 0) {
    return error(Code::kInvalidArgument,
                 "rows of hidden {} x {} have {} bytes, expected a multiple of 16", hidden,
                 type_name(type), row_bytes_);
  }
  const size_t recv_element = quantizes_ ? 1 : element;
  recv_row_bytes_ = hidden * recv_element;
  for (const int64_t stride : {call_.x_stride, call_.recv_x_stride}) {
    if (stride != 0 && stride < call_.hidden) {
      return error(Code::kInvalidArgument, "a stride of {} is less than hidden, {}", stride,
                   hidden);
    }
  }
  stride_ = call_.x_stride == 0 ? row_bytes_ : static_cast<size_t>(call_.x_stride) * element;
  recv_stride_ = call_.recv_x_stride == 0 ? recv_row_bytes_
                                          : static_cast<size_t>(call_.recv_x_stride) * recv_element;
  const int64_t rows = handle_.places.allocated_rows;
  if (call_.recv_rows != 0 && call_.recv_rows < rows) {
    return error(Code::kInvalidArgument, "the outputs hold {} rows, {} are needed", call_.recv_rows,
                 rows);
  }
  const bool sends = handle_.routing.num_tokens > 0;
  if (sends && call_.x == nullptr) return null_pointer("x");
  if (rows > 0 && call_.recv_x == nullptr) return null_pointer("recv_x");
  const int64_t per_row = quantizes_ ? scales_of(call_.quant, call_.hidden) : call_.num_scales;
  in_scales_ = ScaleMatrix::plain(call_.x_scale_strides, call_.num_scales);
  out_scales_ = ScaleMatrix::of_output(
      call_.recv_scale_strides, per_row,
      handle_.layout() == Layout::kExpertMasked ? handle_.routing.capacity : 0);
  ZBCCL_RETURN_IF_ERROR(check_scales());
  if (by_expert_ && (call_.recv_topk_idx != nullptr || call_.recv_topk_weights != nullptr)) {
    return error(Code::kInvalidArgument,
                 "recv_topk_idx and recv_topk_weights belong to zbcclMoeRankMajor");
  }
  if (!by_expert_ && call_.recv_row_weights != nullptr) {
    return error(Code::kInvalidArgument, "recv_row_weights belongs to the expert layouts");
  }
  return check_ranges();
}

Status Dispatcher::check_scales() const {
  if (call_.num_scales < 0 || call_.num_scales > kMostHidden) {
    return error(Code::kInvalidArgument, "num_scales is {}", call_.num_scales);
  }
  if (quantizes_ && (call_.num_scales != 0 || call_.x_scales != nullptr)) {
    return error(Code::kInvalidArgument,
                 "x brings scales along and is to be quantized; one of them only");
  }
  if (call_.num_scales == 0 && call_.x_scales != nullptr) {
    return error(Code::kInvalidArgument, "x_scales are given, and num_scales is 0");
  }
  for (const int64_t stride :
       {call_.x_scale_strides[0], call_.x_scale_strides[1], call_.recv_scale_strides[0],
        call_.recv_scale_strides[1], call_.recv_scale_strides[2]}) {
    if (stride < 0) return error(Code::kInvalidArgument, "a stride of scales is {}", stride);
  }
  if (call_.num_scales > 0 && handle_.routing.num_tokens > 0 && call_.x_scales == nullptr) {
    return null_pointer("x_scales");
  }
  if (out_scales_.per_row > 0 && handle_.places.allocated_rows > 0 &&
      call_.recv_scales == nullptr) {
    return null_pointer("recv_scales");
  }
  return {};
}

Status Dispatcher::check_ranges() const {
  const int64_t tokens = handle_.routing.num_tokens;
  const int64_t rows = handle_.places.allocated_rows;
  const auto extent = [](int64_t count, size_t stride, size_t bytes) {
    return count == 0 ? 0 : static_cast<size_t>(count - 1) * stride + bytes;
  };
  const auto slots = static_cast<size_t>(topk_);
  const size_t row_slots = static_cast<size_t>(rows) * slots;
  const size_t index = type_size(static_cast<DataType>(handle_.routing.idx_type));
  Ranges ranges;
  ranges.input(call_.x, extent(tokens, stride_, row_bytes_), 1, "x");
  ranges.input(call_.x_scales, static_cast<size_t>(in_scales_.extent(tokens)) * 4, 4, "x_scales");
  ranges.input(call_.topk_weights, static_cast<size_t>(tokens) * slots * 4, 4, "topk_weights");
  ranges.output(call_.recv_x, extent(rows, recv_stride_, recv_row_bytes_), 1, "recv_x");
  ranges.output(out_scales_.per_row > 0 ? call_.recv_scales : nullptr,
                static_cast<size_t>(out_scales_.extent(rows)) * 4, 4, "recv_scales");
  ranges.output(call_.recv_topk_idx, row_slots * index, 1, "recv_topk_idx");
  ranges.output(call_.recv_topk_weights, row_slots * 4, 4, "recv_topk_weights");
  ranges.output(call_.recv_row_weights, static_cast<size_t>(rows) * 4, 4, "recv_row_weights");
  ranges.output(call_.recv_src_idx, static_cast<size_t>(rows) * 4, 4, "recv_src_idx");
  return ranges.check();
}

}  // namespace zbccl::moe
