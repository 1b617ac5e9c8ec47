// The exchange of counts on the device.
#include "moe/cuda/tables.h"

namespace zbccl::moe {
namespace {

Status check_alignment(const void* indices, size_t element) {
  if (reinterpret_cast<uintptr_t>(indices) % element == 0) return {};
  return error(Code::kUnsupported,
               "`topk_idx` at {} is not aligned to its elements of {} bytes, which device memory "
               "must be",
               indices, element);
}

// Rows that a peer can be told of on the device.
Status check_rows(int64_t rows) {
  if (rows <= cuda::kMostTargetRows) return {};
  return error(Code::kUnsupported,
               "a capacity of {} rows is more than the {} that device memory "
               "takes",
               rows, cuda::kMostTargetRows);
}

Status check_capture(const collectives::Context& context, const zbcclMoeRouting_t& routing) {
  if (routing.capacity > 0) return {};
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  ZBCCL_RETURN_IF_CUDA_ERROR(
      cudaStreamIsCapturing(static_cast<cudaStream_t>(context.launch.stream), &capturing),
      "asking for capture");
  if (capturing == cudaStreamCaptureStatusNone) return {};
  return error(Code::kUnsupported,
               "a route without a capacity tells the host how many rows come, which a captured "
               "graph cannot; give a capacity");
}

}  // namespace

Result<cuda::RouteArgs> CudaHalf::prepare_route(const collectives::Context& context,
                                                const zbcclMoeRouting_t& routing, Handle& handle,
                                                Milliseconds timeout) {
  const auto type = static_cast<DataType>(routing.idx_type);
  const auto layout = static_cast<Layout>(routing.layout);
  const size_t locals = moe_.map().experts_of(moe_.rank()).size();
  const int64_t rows = layout == Layout::kExpertMasked
                           ? routing.capacity * static_cast<int64_t>(locals)
                           : routing.capacity;
  ZBCCL_RETURN_IF_ERROR(check_alignment(routing.topk_idx, type_size(type)));
  ZBCCL_RETURN_IF_ERROR(check_rows(rows));
  ZBCCL_RETURN_IF_ERROR(check_capture(context, routing));
  const bool exact = routing.capacity == 0;
  ZBCCL_ASSIGN_OR_RETURN(auto tables, Tables::make(*this, handle, exact));
  const int alignment = layout == Layout::kExpertMajor ? routing.alignment : 1;

  cuda::RouteArgs args;
  args.call = entry_for(
      Operation::kMoeRoute,
      static_cast<uint32_t>(type) | static_cast<uint32_t>(routing.num_topk) << 8 |
          static_cast<uint32_t>(layout) << 16,
      1, static_cast<uint64_t>(alignment) | (static_cast<uint64_t>(handle.number) & 0xffff) << 32);
  args.moe = view_;
  args.tables = tables->on_gpu();
  args.topk_idx = routing.topk_idx;
  args.wide = type == DataType::kI64;
  args.tokens = static_cast<int32_t>(routing.num_tokens);
  args.topk = routing.num_topk;
  args.layout = static_cast<cuda::MoeLayout>(layout);
  args.alignment = alignment;
  args.capacity = static_cast<int32_t>(routing.capacity);
  for (int r = 0; r < engine_.team().size(); ++r) {
    if (moe_.masked(r)) args.mask |= 1U << r;
  }
  args.recv_counts = routing.recv_counts;
  args.recv_status = routing.recv_status;
  args.recv_ranges = routing.recv_ranges;
  if (exact) {
    args.host_words = tables->host_counts().words;
    args.host_totals = tables->host_counts().totals;
    args.host_done = tables->host_counts().done;
  }
  tables->set_deadline(
      Deadline::after(2 * (timeout.count() > 0 ? timeout : engine_.team().host().timeout())));
  handle.counted_bytes = static_cast<int64_t>(tables->bytes());
  moe_.count_handle(0, handle.counted_bytes);
  handle.device = std::move(tables);
  if (!exact) handle.places.allocated_rows = rows;
  return args;
}

Status CudaHalf::enqueue_route(const collectives::Context& context, const cuda::RouteArgs& args,
                               Milliseconds timeout) {
  auto* const stream = static_cast<cudaStream_t>(context.launch.stream);
  const cuda::TeamView view = engine_.team().view(timeout);
  return engine_.enqueue(stream, [&]() -> Status {
    ZBCCL_RETURN_IF_CUDA_ERROR(cuda::launch_moe_route(view, args, stream), "route");
    return {};
  });
}

Status CudaHalf::route(collectives::Context& context, const zbcclMoeRouting_t& routing,
                       Handle& handle, Milliseconds timeout) {
  ZBCCL_ASSIGN_OR_RETURN(const cuda::RouteArgs args,
                         prepare_route(context, routing, handle, timeout));
  ZBCCL_RETURN_IF_ERROR(enqueue_route(context, args, timeout));
  if (routing.capacity > 0) handle.state.store(1, std::memory_order_release);
  return {};
}

}  // namespace zbccl::moe
