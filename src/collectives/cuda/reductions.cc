// all_reduce, reduce and reduce_scatter(v) on device memory.
#include <algorithm>

#include "collectives/cuda/engine.h"
#include "kernels/cuda/push.h"
#include "kernels/cuda/reduce.h"

namespace zbccl::cuda {

using plan::DeviceAlgorithm;

namespace {

// The slices that the ranks reduce, in bytes of every rank's input.
void slice(const Collective& call, DeviceAlgorithm algorithm, int nranks, ReduceArgs* args) {
  const size_t element = type_size(call.type);
  const bool scatters =
      call.operation == Operation::kReduceScatter || call.operation == Operation::kReduceScatterV;
  uint64_t first = 0;
  for (int r = 0; r < nranks; ++r) {
    if (scatters) {
      // The input's blocks lie one behind the other.
      args->bytes[r] = collectives::send_block(call, r).bytes;
      args->begin[r] = first;
      first += args->bytes[r];
    } else if (algorithm == DeviceAlgorithm::kOneShot) {
      const bool whole = call.operation == Operation::kAllReduce || r == call.root;
      args->begin[r] = 0;
      args->bytes[r] = whole ? call.count * element : 0;
    } else {
      const plan::Range range = plan::chunk_of(call.count, element, r, nranks);
      args->begin[r] = range.begin * element;
      args->bytes[r] = range.size() * element;
    }
  }
}

uint64_t longest_of(const ReduceArgs& args, int nranks) {
  return *std::max_element(args.bytes, args.bytes + nranks);
}

}  // namespace

Status Engine::reduce(const Collective& call, cudaStream_t stream) {
  const int nranks = team_->size();
  const int rank = team_->rank();
  const size_t in_bytes = collectives::send_bytes(call, rank, nranks);
  const size_t out_bytes = collectives::recv_bytes(call, rank, nranks);
  const bool scatters =
      call.operation == Operation::kReduceScatter || call.operation == Operation::kReduceScatterV;
  ReduceArgs args;
  // The slices of a one-shot form and of the others.
  slice(call, DeviceAlgorithm::kOneShot, nranks, &args);
  const uint64_t longest = longest_of(args, nranks);
  if (!scatters) slice(call, DeviceAlgorithm::kChunked, nranks, &args);
  const plan::DevicePlan plan = plan_for(call, in_bytes, longest, longest_of(args, nranks));
  if (plan.algorithm == DeviceAlgorithm::kOneShot) slice(call, plan.algorithm, nranks, &args);
  args.op = static_cast<uint32_t>(call.op);
  args.depth = plan.depth;
  args.whole =
      plan.algorithm == DeviceAlgorithm::kOneShot && call.operation == Operation::kAllReduce;
  args.direct = plan.algorithm == DeviceAlgorithm::kTwoShotDirect;
  if (call.operation == Operation::kAllReduce) args.targets = (1U << nranks) - 1;
  if (call.operation == Operation::kReduce) args.targets = 1U << call.root;

  // Who is reached where it lies: outputs that peers write, inputs that they read.
  Operand in{static_cast<char*>(const_cast<void*>(call.send)), {}, false};
  Operand out{static_cast<char*>(call.recv), {}, false};
  const bool pulls =
      plan.algorithm == DeviceAlgorithm::kPull || plan.algorithm == DeviceAlgorithm::kPullPush;
  const bool pushes = plan.algorithm == DeviceAlgorithm::kPullPush ||
                      plan.algorithm == DeviceAlgorithm::kTwoShotDirect ||
                      plan.algorithm == DeviceAlgorithm::kRelaxedRing ||
                      (plan.algorithm == DeviceAlgorithm::kChunked && !scatters);
  if (pulls) ZBCCL_RETURN_IF_ERROR(open_input(call.send, in_bytes, stream, &in));
  if (pushes) ZBCCL_RETURN_IF_ERROR(open_output(call.recv, out_bytes, &out));
  args.in = {in.data, in_bytes};
  args.out = {out.data, out_bytes};
  for (int r = 0; r < nranks; ++r) {
    // Of a scatter each pair agrees on its slice.
    Entry entry = entry_for(call, plan, scatters ? args.bytes[r] : in_bytes);
    entry.in_high = in.place.high;
    entry.in_low = in.place.low;
    entry.out_high = out.place.high;
    entry.out_low = out.place.low;
    args.call.entry[r] = entry;
    args.call.expected[r] = scatters ? args.bytes[rank] : in_bytes;
  }

  const TeamView view = team_->view(call.timeout);
  const LaunchShape shape = shape_of(plan, stream);
  const uint64_t peers = static_cast<uint64_t>(nranks - 1);
  switch (plan.algorithm) {
    case DeviceAlgorithm::kOneShot:
      ZBCCL_RETURN_IF_CUDA_ERROR(launch_one_shot(view, args, call.type, shape), "one-shot");
      team_->host().count_landing(args.bytes[rank] * peers);
      break;
    case DeviceAlgorithm::kTwoShot:
    case DeviceAlgorithm::kTwoShotDirect:
      ZBCCL_RETURN_IF_CUDA_ERROR(launch_two_shot(view, args, call.type, shape), "two-shot");
      team_->host().count_landing(in_bytes / static_cast<uint64_t>(nranks) * peers *
                                  (args.direct ? 1 : 2));
      break;
    case DeviceAlgorithm::kChunked:
      ZBCCL_RETURN_IF_CUDA_ERROR(launch_chunked(view, args, call.type, shape), "chunked");
      team_->host().count_landing(args.bytes[rank] * peers);
      break;
    case DeviceAlgorithm::kPullPush:
      // Each rank's slice is reduced into its place, and goes to everybody's pack by pack, or from
      // there.
      args.out = {out.data + args.begin[rank], args.bytes[rank]};
      args.spread = plan.spread;
      ZBCCL_RETURN_IF_CUDA_ERROR(launch_pull(view, args, call.type, shape), "pull");
      if (!args.spread) ZBCCL_RETURN_IF_ERROR(spread_slices(call, args, out, false, stream));
      break;
    case DeviceAlgorithm::kRelaxedRing:
      args.out = {out.data + args.begin[rank], args.bytes[rank]};
      ZBCCL_RETURN_IF_CUDA_ERROR(launch_ring_sums(view, args, call.type, shape), "summing ring");
      team_->host().count_landing(args.bytes[rank] * peers);
      ZBCCL_RETURN_IF_ERROR(spread_slices(call, args, out, true, stream));
      break;
    default: ZBCCL_RETURN_IF_CUDA_ERROR(launch_pull(view, args, call.type, shape), "pull"); break;
  }
  return close_output(out, call.recv, out_bytes, stream);
}

// The second half of an all_reduce: the slice that this rank has in its output goes to its place in
// the others', `around` the ring or as an all_gather of that size goes.
Status Engine::spread_slices(const Collective& call, const ReduceArgs& reduced, const Operand& out,
                             bool around, cudaStream_t stream) {
  const int nranks = team_->size();
  const int rank = team_->rank();
  Collective gather;
  gather.operation = Operation::kAllGatherV;
  gather.type = call.type;
  gather.launch = call.launch;
  gather.timeout = call.timeout;
  plan::DeviceCall what;
  what.operation = Operation::kAllGather;
  what.type = call.type;
  what.bytes = *std::max_element(reduced.bytes, reduced.bytes + nranks);
  what.nranks = nranks;
  what.max_blocks = block_limit(call.launch);
  plan::DeviceTuning tuning = tuning_;
  tuning.inline_max = 0;
  tuning.copy_engine_min = plan::kNever;
  if (around) tuning.ring_min = 0;
  tuning.forced = DeviceAlgorithm::kNone;
  const plan::DevicePlan plan = plan::choose(what, tuning);
  if (plan.algorithm == DeviceAlgorithm::kRing) {
    RingArgs args;
    args.own = out.data + reduced.begin[rank];
    args.out = out.data;
    std::copy_n(reduced.begin, nranks, args.begin);
    std::copy_n(reduced.bytes, nranks, args.bytes);
    return send_around(gather, plan, args, out.place, stream);
  }
  PushArgs args;
  args.in = {out.data + reduced.begin[rank], reduced.bytes[rank]};
  args.out = {out.data, reduced.in.bytes};
  args.own_to = reduced.begin[rank];
  args.longest = reduced.bytes[rank];
  args.same_source = true;
  const uint64_t base = static_cast<uint64_t>(out.place.high & 0xffff) << 32 | out.place.low;
  for (int r = 0; r < nranks; ++r) {
    args.bytes[r] = reduced.bytes[rank];
    Entry entry = entry_for(gather, plan, reduced.bytes[rank]);
    const Place there = make_place(out.place.high >> 16, base + reduced.begin[r]);
    entry.out_high = there.high;
    entry.out_low = there.low;
    args.call.entry[r] = entry;
    args.call.expected[r] = reduced.bytes[r];
  }
  const TeamView view = team_->view(call.timeout);
  const bool bulk = plan.algorithm == DeviceAlgorithm::kPushBulk;
  ZBCCL_RETURN_IF_CUDA_ERROR(bulk ? launch_push_bulk(view, args, shape_of(plan, stream))
                                  : launch_push(view, args, shape_of(plan, stream)),
                             "spreading the sums");
  return {};
}

}  // namespace zbccl::cuda
