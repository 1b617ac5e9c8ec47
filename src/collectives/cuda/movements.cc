// The operations on device memory that move data and reduce nothing: each block is pushed from the
// input where it is to the output where it belongs.
#include <algorithm>

#include "collectives/cuda/engine.h"
#include "kernels/cuda/push.h"

namespace zbccl::cuda {

using plan::DeviceAlgorithm;

namespace {

// Blocks of one rank's part in a movement, in bytes: what it sends to each rank and gets from each.
struct Parts {
  uint64_t from[kMaxRanks] = {};  // of what is sent, in the input
  uint64_t sends[kMaxRanks] = {};
  uint64_t to[kMaxRanks] = {};  // of what comes, in the output
  uint64_t gets[kMaxRanks] = {};
  uint64_t known = 0;  // the largest block that all ranks know of
};

Parts parts_of(const Collective& call, int rank, int nranks) {
  Parts parts;
  const bool at_root = rank == call.root;
  for (int r = 0; r < nranks; ++r) {
    const collectives::Extent sent = collectives::send_block(call, r);
    const collectives::Extent got = collectives::recv_block(call, r);
    switch (call.operation) {
      case Operation::kAllGather:
      case Operation::kAllGatherV: {
        const collectives::Extent mine = collectives::recv_block(call, rank);
        parts.sends[r] = mine.bytes;
        parts.to[r] = got.offset;
        parts.gets[r] = got.bytes;
        break;
      }
      case Operation::kAllToAll:
      case Operation::kAllToAllV:
        parts.from[r] = sent.offset;
        parts.sends[r] = sent.bytes;
        parts.to[r] = got.offset;
        parts.gets[r] = got.bytes;
        break;
      case Operation::kGather:
        parts.sends[r] = r == call.root ? sent.bytes : 0;
        parts.to[r] = got.offset;
        parts.gets[r] = at_root ? got.bytes : 0;
        break;
      case Operation::kScatter:
        parts.from[r] = sent.offset;
        parts.sends[r] = at_root ? sent.bytes : 0;
        parts.gets[r] = r == call.root ? got.bytes : 0;
        break;
      case Operation::kBroadcast:
        parts.sends[r] = at_root ? sent.bytes : 0;
        parts.gets[r] = r == call.root ? got.bytes : 0;
        break;
      default: break;
    }
    if (call.operation == Operation::kAllGatherV) {
      parts.known = std::max(parts.known, static_cast<uint64_t>(got.bytes));
    }
  }
  if (!has_blocks(call.operation)) parts.known = call.count * type_size(call.type);
  return parts;
}

}  // namespace

Status Engine::move(const Collective& call, cudaStream_t stream) {
  const int nranks = team_->size();
  const int rank = team_->rank();
  const size_t in_bytes = collectives::send_bytes(call, rank, nranks);
  const size_t out_bytes = collectives::recv_bytes(call, rank, nranks);
  const Parts parts = parts_of(call, rank, nranks);
  const plan::DevicePlan plan = plan_for(call, parts.known);

  if (plan.algorithm == DeviceAlgorithm::kSwap) return swap(call, plan, stream);
  if (plan.algorithm == DeviceAlgorithm::kRing) return ring(call, plan, stream);
  Operand out{static_cast<char*>(call.recv), {}, false};
  const bool lands = plan.algorithm == DeviceAlgorithm::kInline;
  if (!lands) ZBCCL_RETURN_IF_ERROR(open_output(call.recv, out_bytes, &out));
  PushArgs args;
  args.in = {static_cast<char*>(const_cast<void*>(call.send)), in_bytes};
  if (collectives::swaps_in_place(call) && !lands) {
    // By force: peers write over what has not been sent yet, unless a copy is sent.
    ZBCCL_ASSIGN_OR_RETURN(args.in.data, stage(in_bytes));
    ZBCCL_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(args.in.data, call.send, in_bytes, cudaMemcpyDeviceToDevice, stream),
        "staging an exchange in place");
  }
  args.out = {out.data, out_bytes};
  args.own_to = parts.to[rank];
  args.same_source = call.operation == Operation::kAllGather ||
                     call.operation == Operation::kAllGatherV ||
                     call.operation == Operation::kBroadcast;
  const uint64_t base = static_cast<uint64_t>(out.place.high & 0xffff) << 32 | out.place.low;
  const bool tallied = call.operation == Operation::kAllToAllV;
  const uint64_t tally = tallied ? collectives::tally_of(call, rank) : 0;
  for (int r = 0; r < nranks; ++r) {
    args.from[r] = parts.from[r];
    args.bytes[r] = parts.sends[r];
    args.to[r] = parts.to[r];
    args.longest = std::max(args.longest, parts.sends[r]);
    Entry entry = entry_for(call, plan, parts.sends[r]);
    if (out_bytes > 0 && !lands) {
      const Place place = make_place(out.place.high >> 16, base + parts.to[r]);
      entry.out_high = place.high;
      entry.out_low = place.low;
    }
    if (tallied) {  // tallies_agree() in sync.cuh
      entry.in_high = kNoSegment << 16 | static_cast<uint32_t>(tally >> 32 & 0xffff);
      entry.in_low = static_cast<uint32_t>(tally);
    }
    args.call.entry[r] = entry;
    args.call.expected[r] = parts.gets[r];
  }
  // Only the root's block goes everywhere.
  if (call.operation == Operation::kBroadcast && rank != call.root) args.same_source = false;

  const TeamView view = team_->view(call.timeout);
  const LaunchShape shape = shape_of(plan, stream);
  if (lands) {
    ZBCCL_RETURN_IF_CUDA_ERROR(launch_push_inline(view, args, shape), "inline push");
    for (int r = 0; r < nranks; ++r) {
      if (r != rank) team_->host().count_landing(parts.gets[r]);
    }
  } else if (plan.algorithm == DeviceAlgorithm::kCopyEngine) {
    ZBCCL_RETURN_IF_ERROR(copy(call, args, stream));
  } else if (plan.algorithm == DeviceAlgorithm::kPushBulk) {
    ZBCCL_RETURN_IF_CUDA_ERROR(launch_push_bulk(view, args, shape), "bulk push");
  } else {
    ZBCCL_RETURN_IF_CUDA_ERROR(launch_push(view, args, shape), "push");
  }
  return close_output(out, call.recv, out_bytes, stream);
}

Status Engine::send_around(const Collective& call, const plan::DevicePlan& plan, RingArgs& args,
                           const Place& place, cudaStream_t stream) {
  const int rank = team_->rank();
  args.piece = plan.piece;
  for (int r = 0; r < team_->size(); ++r) {
    Entry entry = entry_for(call, plan, args.bytes[rank]);
    entry.out_high = place.high;
    entry.out_low = place.low;
    args.call.entry[r] = entry;
    args.call.expected[r] = args.bytes[r];
  }
  ZBCCL_RETURN_IF_CUDA_ERROR(launch_ring(team_->view(call.timeout), args, shape_of(plan, stream)),
                             "sending slices around");
  return {};
}

Status Engine::ring(const Collective& call, const plan::DevicePlan& plan, cudaStream_t stream) {
  const auto nranks = static_cast<uint64_t>(team_->size());
  const uint64_t bytes = call.count * type_size(call.type);
  Operand out;
  ZBCCL_RETURN_IF_ERROR(open_output(call.recv, bytes * nranks, &out));
  RingArgs args;
  // In place it lies in the output, and there in a copy of it where that is staged.
  const bool in_place =
      call.send == static_cast<char*>(call.recv) + bytes * static_cast<uint64_t>(team_->rank());
  args.own = in_place ? out.data + bytes * static_cast<uint64_t>(team_->rank())
                      : static_cast<const char*>(call.send);
  args.out = out.data;
  for (uint64_t r = 0; r < nranks; ++r) {
    args.begin[r] = r * bytes;
    args.bytes[r] = bytes;
  }
  ZBCCL_RETURN_IF_ERROR(send_around(call, plan, args, out.place, stream));
  return close_output(out, call.recv, bytes * nranks, stream);
}

Status Engine::swap(const Collective& call, const plan::DevicePlan& plan, cudaStream_t stream) {
  const int nranks = team_->size();
  const uint64_t block = call.count * type_size(call.type);
  const uint64_t bytes = block * static_cast<uint64_t>(nranks);
  Operand buffer;
  ZBCCL_RETURN_IF_ERROR(open_output(call.recv, bytes, &buffer));
  SwapArgs args;
  args.data = buffer.data;
  args.bytes = block;
  const uint64_t base = static_cast<uint64_t>(buffer.place.high & 0xffff) << 32 | buffer.place.low;
  for (int r = 0; r < nranks; ++r) {
    Entry entry = entry_for(call, plan, block);
    const Place place =
        make_place(buffer.place.high >> 16, base + block * static_cast<uint64_t>(r));
    entry.out_high = place.high;
    entry.out_low = place.low;
    args.call.entry[r] = entry;
    args.call.expected[r] = block;
  }
  ZBCCL_RETURN_IF_CUDA_ERROR(launch_swap(team_->view(call.timeout), args, shape_of(plan, stream)),
                             "swapping blocks");
  return close_output(buffer, call.recv, bytes, stream);
}

Status Engine::broadcast(const Collective& call, cudaStream_t stream) {
  const int nranks = team_->size();
  const uint64_t bytes = call.count * type_size(call.type);
  const plan::DevicePlan plan = plan_for(call, bytes);
  if (plan.algorithm != DeviceAlgorithm::kRelay && plan.algorithm != DeviceAlgorithm::kChain) {
    return move(call, stream);
  }
  Operand out;
  ZBCCL_RETURN_IF_ERROR(open_output(call.recv, bytes, &out));
  RelayArgs args;
  args.in = {static_cast<char*>(const_cast<void*>(call.send)), bytes};
  args.out = {out.data, bytes};
  args.bytes = bytes;
  args.root = call.root;
  args.chain = plan.algorithm == DeviceAlgorithm::kChain;
  for (int r = 0; r < nranks; ++r) {
    Entry entry = entry_for(call, plan, bytes);
    entry.out_high = out.place.high;
    entry.out_low = out.place.low;
    args.call.entry[r] = entry;
    args.call.expected[r] = bytes;
  }
  ZBCCL_RETURN_IF_CUDA_ERROR(launch_relay(team_->view(call.timeout), args, shape_of(plan, stream)),
                             "relay");
  return close_output(out, call.recv, bytes, stream);
}

}  // namespace zbccl::cuda
