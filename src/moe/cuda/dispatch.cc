// Dispatch on the device: rows are pushed to where they belong.
#include <array>

#include "moe/cuda/tables.h"
#include "moe/shapes.h"

namespace zbccl::moe {
namespace {

constexpr int kBlocks = 8;  // more fill the link no better (docs/performance-gpu.md)
constexpr int kQuantizingBlocks = 12;
constexpr int kMaskedBlocks = 64;  // a few rows each, for a short time

void put(cuda::MoeNotes* notes, int word, int64_t value) {
  const auto bits = static_cast<uint64_t>(value);
  notes->word[word] = static_cast<uint32_t>(bits >> 32);
  notes->word[word + 1] = static_cast<uint32_t>(bits);
}

Status check_rows(const void* data, size_t stride, size_t bytes, const char* name) {
  constexpr size_t kUnit = cuda::kPackBytes;
  if ((reinterpret_cast<uintptr_t>(data) | stride | bytes) % kUnit == 0) return {};
  return error(Code::kUnsupported,
               "rows of `{}` at {}, {} bytes apart, are not aligned to {} bytes, which device "
               "memory must be",
               name, data, stride, kUnit);
}

Status check_alignment(const zbcclMoeDispatch_t& call, const DispatchShape& shape,
                       const Handle& handle) {
  if (handle.routing.num_tokens > 0) {
    ZBCCL_RETURN_IF_ERROR(check_rows(call.x, shape.stride, shape.row_bytes, "x"));
  }
  if (call.quant == zbcclMoeQuantNone && handle.places.allocated_rows > 0) {
    ZBCCL_RETURN_IF_ERROR(
        check_rows(call.recv_x, shape.recv_stride, shape.recv_row_bytes, "recv_x"));
  }
  const size_t index = type_size(static_cast<DataType>(handle.routing.idx_type));
  if (reinterpret_cast<uintptr_t>(call.recv_topk_idx) % index != 0) {
    return error(Code::kUnsupported, "`recv_topk_idx` at {} is not aligned to its elements",
                 call.recv_topk_idx);
  }
  if (call.quant != zbcclMoeQuantNone && call.hidden > cuda::kMostQuantizedHidden) {
    return error(Code::kUnsupported, "rows of {} elements are quantized on the device, not of {}",
                 cuda::kMostQuantizedHidden, call.hidden);
  }
  return {};
}

// One output array: where it is, how large, and where its address goes.
struct Output {
  void* data;
  size_t bytes;
  int place;  // cuda::MoePlace, or -1: recv_x
};

std::array<Output, 6> outputs_of(const zbcclMoeDispatch_t& call, const DispatchShape& shape,
                                 const Handle& handle) {
  const auto rows = static_cast<size_t>(handle.places.allocated_rows);
  const size_t slots = rows * static_cast<size_t>(handle.routing.num_topk);
  const size_t index = type_size(static_cast<DataType>(handle.routing.idx_type));
  const auto extent = [](void* data, size_t bytes) { return data == nullptr ? 0 : bytes; };
  void* const scales = shape.out_scales.per_row > 0 ? call.recv_scales : nullptr;
  const auto scale_words =
      static_cast<size_t>(shape.out_scales.extent(handle.places.allocated_rows));
  return {
      {{call.recv_x,
        rows_extent(handle.places.allocated_rows, shape.recv_stride, shape.recv_row_bytes), -1},
       {scales, extent(scales, scale_words * 4), cuda::kPlaceScales},
       {call.recv_topk_idx, extent(call.recv_topk_idx, slots * index), cuda::kPlaceTopkIdx},
       {call.recv_topk_weights, extent(call.recv_topk_weights, slots * sizeof(float)),
        cuda::kPlaceTopkWeights},
       {call.recv_row_weights, extent(call.recv_row_weights, rows * sizeof(float)),
        cuda::kPlaceRowWeights},
       {call.recv_src_idx, extent(call.recv_src_idx, rows * sizeof(int32_t)), cuda::kPlaceSrcIdx}}};
}

// Where this rank's kernels write them.
void set_output(cuda::MoeOutputs* own, int place, char* data) {
  switch (place) {
    case cuda::kPlaceScales: own->scales = reinterpret_cast<uint32_t*>(data); break;
    case cuda::kPlaceTopkIdx: own->topk_idx = data; break;
    case cuda::kPlaceTopkWeights: own->topk_weights = reinterpret_cast<float*>(data); break;
    case cuda::kPlaceRowWeights: own->row_weights = reinterpret_cast<float*>(data); break;
    case cuda::kPlaceSrcIdx: own->src_idx = reinterpret_cast<int32_t*>(data); break;
    default: own->rows = data; break;
  }
}

uint32_t weight_flags(const zbcclMoeDispatch_t& call, const Handle& handle) {
  const bool wants = call.recv_topk_weights != nullptr || call.recv_row_weights != nullptr;
  return (call.topk_weights != nullptr ? cuda::kGivesWeights : 0) |
         (handle.routing.num_tokens > 0 ? cuda::kNeedsWeights : 0) |
         (wants ? cuda::kWantsWeights : 0);
}

int blocks_of(const zbcclMoeDispatch_t& call, const Handle& handle, bool joint) {
  if (joint) return cuda::kMaxBlocks;
  if (handle.layout() == Layout::kExpertMasked) return kMaskedBlocks;
  return call.quant == zbcclMoeQuantNone ? kBlocks : kQuantizingBlocks;
}

// What the ranks compare of a dispatch besides its sizes. `joint`: with its route.
uint32_t settings_of(const zbcclMoeDispatch_t& call, const Handle& handle, bool joint) {
  const zbcclMoeRouting_t& routing = handle.routing;
  const auto slots = static_cast<uint32_t>(routing.num_topk - 1);
  const uint32_t indices = routing.idx_type == zbcclInt64 ? 1 : 0;
  return static_cast<uint32_t>(call.type) | static_cast<uint32_t>(call.quant) << 8 |
         (joint ? 1U << 6 | indices << 7 | slots << 11 : 0U) |
         (static_cast<uint32_t>(handle.number) & 0xff) << 16;
}

}  // namespace

Status CudaHalf::dispatch(collectives::Context& context, const zbcclMoeDispatch_t& call,
                          Handle& handle, Milliseconds timeout) {
  if (call.phase == zbcclMoeReceivePhase) return receive_dispatch(context, call, handle, timeout);
  if (handle.routing.capacity == 0) ZBCCL_RETURN_IF_ERROR(handle.settle());
  context.payload = static_cast<uint64_t>(handle.routing.num_tokens) *
                    static_cast<uint64_t>(std::max<int64_t>(call.hidden, 0));
  return enqueue_dispatch(context, call, handle, nullptr, timeout);
}

Status CudaHalf::route_and_dispatch(collectives::Context& context, const zbcclMoeDispatch_t& call,
                                    Handle& handle, Milliseconds timeout) {
  ZBCCL_ASSIGN_OR_RETURN(const cuda::RouteArgs route,
                         prepare_route(context, handle.routing, handle, timeout));
  handle.state.store(1, std::memory_order_release);
  return enqueue_dispatch(context, call, handle, &route, timeout);
}

cuda::DispatchArgs CudaHalf::dispatch_args(const zbcclMoeDispatch_t& call,
                                           const DispatchShape& shape, const Handle& handle) const {
  cuda::DispatchArgs args;
  args.moe = view_;
  args.tables = static_cast<const Tables&>(*handle.device).on_gpu();
  args.x = static_cast<const char*>(call.x);
  args.x_stride = static_cast<int64_t>(shape.stride);
  args.row_bytes = static_cast<int32_t>(shape.row_bytes);
  args.recv_row_bytes = static_cast<int32_t>(shape.recv_row_bytes);
  args.scales = static_cast<const uint32_t*>(call.x_scales);
  args.scale_strides[0] = shape.in_scales.row;
  args.scale_strides[1] = shape.in_scales.scale;
  args.num_scales = static_cast<int32_t>(shape.out_scales.per_row);
  args.topk_weights = call.topk_weights;
  args.tokens = static_cast<int32_t>(handle.routing.num_tokens);
  args.topk = handle.routing.num_topk;
  args.wide = handle.routing.idx_type == zbcclInt64;
  args.layout = static_cast<cuda::MoeLayout>(handle.layout());
  args.quant = static_cast<cuda::MoeQuant>(call.quant);
  args.zero_padding = call.zero_padding != 0;
  args.allocated_rows = static_cast<int32_t>(handle.places.allocated_rows);
  if (call.phase == zbcclMoeSendPhase) args.phase = cuda::MoePhase::kSend;

  args.own.stride = static_cast<int64_t>(shape.recv_stride);
  args.own.scale_strides[0] = shape.out_scales.expert;
  args.own.scale_strides[1] = shape.out_scales.row;
  args.own.scale_strides[2] = shape.out_scales.scale;
  args.own.capacity =
      handle.layout() == Layout::kExpertMasked ? static_cast<int32_t>(handle.routing.capacity) : 0;
  put(&args.notes, cuda::kNoticeStride, args.own.stride);
  for (int i = 0; i < 3; ++i) {
    put(&args.notes, cuda::kNoticeScaleStrides + 2 * i, args.own.scale_strides[i]);
  }
  args.notes.word[cuda::kNoticeCapacity] = static_cast<uint32_t>(args.own.capacity);
  args.notes.word[cuda::kNoticeFlags] = weight_flags(call, handle);
  return args;
}

Status CudaHalf::enqueue_dispatch(const collectives::Context& context,
                                  const zbcclMoeDispatch_t& call, Handle& handle,
                                  const cuda::RouteArgs* route, Milliseconds timeout) {
  ZBCCL_ASSIGN_OR_RETURN(const DispatchShape shape, check_dispatch(call, handle, device()));
  ZBCCL_RETURN_IF_ERROR(check_alignment(call, shape, handle));
  cuda::DispatchArgs args = dispatch_args(call, shape, handle);
  const bool joint = route != nullptr && cuda::routes_and_pushes(args, engine_.team().size());
  if (route != nullptr && !joint) ZBCCL_RETURN_IF_ERROR(enqueue_route(context, *route, timeout));
  const int blocks = blocks_for(context, blocks_of(call, handle, joint));
  args.call =
      entry_for(Operation::kMoeDispatch, settings_of(call, handle, joint), blocks,
                static_cast<uint64_t>(call.hidden) | static_cast<uint64_t>(call.num_scales) << 32);
  auto& tables = static_cast<Tables&>(*handle.device);

  auto* const stream = static_cast<cudaStream_t>(context.launch.stream);
  const cuda::TeamView view = engine_.team().view(timeout);
  return engine_.enqueue(stream, [&]() -> Status {
    const auto outputs = outputs_of(call, shape, handle);
    std::array<cuda::Engine::Operand, outputs.size()> operands;
    uint64_t staged = 0;
    for (size_t i = 0; i < outputs.size(); ++i) {
      const Output& output = outputs[i];
      ZBCCL_RETURN_IF_ERROR(engine_.open_output(output.data, output.bytes, &operands[i]));
      if (operands[i].staged) staged += output.bytes;
      set_output(&args.own, output.place, operands[i].data);
      const cuda::Place& place = operands[i].place;
      if (output.place >= 0) {
        args.notes.word[cuda::kNoticePlaces + 2 * output.place] = place.high;
        args.notes.word[cuda::kNoticePlaces + 2 * output.place + 1] = place.low;
        continue;
      }
      for (int r = 0; r < engine_.team().size(); ++r) {
        args.call.entry[r].out_high = place.high;
        args.call.entry[r].out_low = place.low;
      }
    }
    if (staged > 0 && call.phase == zbcclMoeSendPhase) {
      return error(
          Code::kUnsupported,
          "a dispatch in two phases writes to outputs that peers can reach; take them from "
          "zbcclMemAllocDevice");
    }
    const auto type = static_cast<DataType>(call.type);
    const cuda::LaunchShape grid = {blocks, 0, stream, true};
    ZBCCL_RETURN_IF_CUDA_ERROR(
        joint ? cuda::launch_moe_route_and_dispatch(view, *route, args, type, grid)
              : cuda::launch_moe_dispatch(view, args, type, grid),
        "dispatch");
    tables.sent_blocks = blocks;
    moe_.note_dispatch_blocks(blocks);
    moe_.count_staged(staged);
    for (size_t i = 0; i < outputs.size(); ++i) {
      ZBCCL_RETURN_IF_ERROR(
          engine_.close_output(operands[i], outputs[i].data, outputs[i].bytes, stream));
    }
    return {};
  });
}

Status CudaHalf::receive_dispatch(const collectives::Context& context,
                                  const zbcclMoeDispatch_t& call, Handle& handle,
                                  Milliseconds timeout) {
  const auto& tables = static_cast<const Tables&>(*handle.device);
  cuda::DispatchArgs args;
  args.phase = cuda::MoePhase::kReceive;
  args.tables = tables.on_gpu();
  args.sent_blocks = tables.sent_blocks;
  args.quant = static_cast<cuda::MoeQuant>(call.quant);
  auto* const stream = static_cast<cudaStream_t>(context.launch.stream);
  const cuda::TeamView view = engine_.team().view(timeout);
  return engine_.enqueue(stream, [&]() -> Status {
    ZBCCL_RETURN_IF_CUDA_ERROR(
        cuda::launch_moe_dispatch(view, args, static_cast<DataType>(call.type),
                                  {1, 0, stream, true}),
        "receive phase of a dispatch");
    return {};
  });
}

}  // namespace zbccl::moe
