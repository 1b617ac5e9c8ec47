// Combine on the device: rows are read where the experts' ranks have them.
#include "moe/cuda/tables.h"
#include "moe/shapes.h"

namespace zbccl::moe {
namespace {

constexpr int kBlocks = 16;
constexpr int kMaskedBlocks = 128;  // a token or two each, for a short time

void put(cuda::MoeNotes* notes, int word, int64_t value) {
  const auto bits = static_cast<uint64_t>(value);
  notes->word[word] = static_cast<uint32_t>(bits >> 32);
  notes->word[word + 1] = static_cast<uint32_t>(bits);
}

Status check_rows(const void* data, size_t stride, const char* name) {
  constexpr size_t kUnit = cuda::kPackBytes;
  if ((reinterpret_cast<uintptr_t>(data) | stride) % kUnit == 0) return {};
  return error(Code::kUnsupported,
               "rows of `{}` at {}, {} bytes apart, are not aligned to {} bytes, which device "
               "memory must be",
               name, data, stride, kUnit);
}

uint32_t weight_flags(const zbcclMoeCombine_t& call, const Handle& handle) {
  return (call.recv_topk_weights != nullptr ? cuda::kGivesWeights : 0) |
         (handle.used_rows() > 0 ? cuda::kNeedsWeights : 0) |
         (call.combined_topk_weights != nullptr ? cuda::kWantsWeights : 0);
}

}  // namespace

// Everything happens in the receive phase: what would be sent is read where it is.
Status CudaHalf::combine(collectives::Context& context, const zbcclMoeCombine_t& call,
                         Handle& handle, Milliseconds timeout) {
  if (handle.routing.capacity == 0) ZBCCL_RETURN_IF_ERROR(handle.settle());
  ZBCCL_ASSIGN_OR_RETURN(const CombineShape shape, check_combine(call, handle, device()));
  ZBCCL_RETURN_IF_ERROR(check_rows(call.y, shape.stride, "y"));
  ZBCCL_RETURN_IF_ERROR(check_rows(call.out, shape.out_stride, "out"));
  for (const void* bias : call.bias) ZBCCL_RETURN_IF_ERROR(check_rows(bias, 0, "bias"));
  if (call.phase == zbcclMoeSendPhase) return {};

  const bool masked = handle.layout() == Layout::kExpertMasked;
  const int blocks = blocks_for(context, masked ? kMaskedBlocks : kBlocks);
  cuda::CombineArgs args;
  args.call = entry_for(Operation::kMoeCombine,
                        static_cast<uint32_t>(call.type) |
                            static_cast<uint32_t>(call.pre_reduce != 0) << 8 |
                            (static_cast<uint32_t>(handle.number) & 0xff) << 16,
                        blocks, static_cast<uint64_t>(call.hidden));
  args.moe = view_;
  args.tables = static_cast<const Tables&>(*handle.device).on_gpu();
  args.y_stride = static_cast<int64_t>(shape.stride);
  args.weights = call.topk_weights;
  for (int i = 0; i < 2; ++i) args.bias[i] = static_cast<const char*>(call.bias[i]);
  args.out = static_cast<char*>(call.out);
  args.out_stride = static_cast<int64_t>(shape.out_stride);
  args.combined_weights = call.combined_topk_weights;
  args.packs = static_cast<int32_t>(shape.row_bytes / cuda::kPackBytes);
  args.tokens = static_cast<int32_t>(handle.routing.num_tokens);
  args.topk = handle.routing.num_topk;
  args.pre_reduce = call.pre_reduce != 0;
  for (int r = 0; r < engine_.team().size(); ++r) {
    if (moe_.masked(r)) args.mask |= 1U << r;
  }
  put(&args.notes, cuda::kNoticeStride, args.y_stride);
  args.notes.word[cuda::kNoticeFlags] = weight_flags(call, handle);
  context.payload = static_cast<uint64_t>(handle.routing.num_tokens) * shape.row_bytes;

  const size_t y_bytes = rows_extent(handle.used_rows(), shape.stride, shape.row_bytes);
  const size_t weight_bytes =
      call.recv_topk_weights == nullptr
          ? 0
          : static_cast<size_t>(handle.used_rows() * handle.routing.num_topk) * sizeof(float);
  auto* const stream = static_cast<cudaStream_t>(context.launch.stream);
  const cuda::TeamView view = engine_.team().view(timeout);
  return engine_.enqueue(stream, [&]() -> Status {
    cuda::Engine::Operand y;
    cuda::Engine::Operand weights;
    ZBCCL_RETURN_IF_ERROR(engine_.open_input(call.y, y_bytes, stream, &y));
    ZBCCL_RETURN_IF_ERROR(
        engine_.open_input(call.recv_topk_weights, weight_bytes, stream, &weights));
    moe_.count_staged((y.staged ? y_bytes : 0) + (weights.staged ? weight_bytes : 0));
    args.y = y.data;
    args.recv_weights = reinterpret_cast<const float*>(weights.data);
    for (int r = 0; r < engine_.team().size(); ++r) {
      args.call.entry[r].in_high = y.place.high;
      args.call.entry[r].in_low = y.place.low;
    }
    const int place = cuda::kNoticePlaces + 2 * cuda::kPlaceTopkWeights;
    for (int i = 0; i < 5; ++i) {
      args.notes.word[cuda::kNoticePlaces + 2 * i] = cuda::kNoSegment << 16;
    }
    args.notes.word[place] = weights.place.high;
    args.notes.word[place + 1] = weights.place.low;
    ZBCCL_RETURN_IF_CUDA_ERROR(
        cuda::launch_moe_combine(view, args, static_cast<DataType>(call.type),
                                 {blocks, 0, stream, true}),
        "combine");
    moe_.note_combine_blocks(blocks);
    return {};
  });
}

}  // namespace zbccl::moe
