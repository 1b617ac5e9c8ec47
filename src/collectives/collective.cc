#include "collectives/collective.h"

#include <cstdint>

namespace zbccl::collectives {
namespace {

bool multiplies(Operation operation) {
  return operation == Operation::kAllGather || operation == Operation::kReduceScatter;
}

bool overlap(const void* a, size_t a_bytes, const void* b, size_t b_bytes) {
  const auto first = reinterpret_cast<uintptr_t>(a);
  const auto second = reinterpret_cast<uintptr_t>(b);
  return a_bytes > 0 && b_bytes > 0 && first < second + b_bytes && second < first + a_bytes;
}

// Where `recv` may lie inside `send` or the other way round.
Status check_aliasing(const Collective& call, int rank, int nranks) {
  const size_t in = send_bytes(call, rank, nranks);
  const size_t out = recv_bytes(call, rank, nranks);
  if (!overlap(call.send, in, call.recv, out)) return {};
  const size_t block = call.count * type_size(call.type);
  const auto* send = static_cast<const std::byte*>(call.send);
  const auto* recv = static_cast<const std::byte*>(call.recv);
  const size_t shift = block * static_cast<size_t>(rank);
  bool in_place = send == recv;
  if (call.operation == Operation::kAllGather) in_place = send == recv + shift;
  if (call.operation == Operation::kReduceScatter) in_place = recv == send + shift;
  if (in_place) return {};
  return error(Code::kInvalidArgument,
               "{}: input at {} and output at {} overlap; give the in-place position or separate "
               "ranges",
               operation_name(call.operation), call.send, static_cast<const void*>(call.recv));
}

}  // namespace

size_t send_bytes(const Collective& call, int rank, int nranks) {
  const size_t block = call.count * type_size(call.type);
  if (call.operation == Operation::kBarrier) return 0;
  if (call.operation == Operation::kBroadcast) return rank == call.root ? block : 0;
  return call.operation == Operation::kReduceScatter ? block * static_cast<size_t>(nranks) : block;
}

size_t recv_bytes(const Collective& call, int /*rank*/, int nranks) {
  const size_t block = call.count * type_size(call.type);
  if (call.operation == Operation::kBarrier) return 0;
  return call.operation == Operation::kAllGather ? block * static_cast<size_t>(nranks) : block;
}

Status check(const Collective& call, int rank, int nranks) {
  const char* name = operation_name(call.operation);
  if (static_cast<unsigned>(call.type) >= kNumDataTypes) {
    return error(Code::kInvalidArgument, "{}: {} is not an element type", name,
                 static_cast<int>(call.type));
  }
  if (static_cast<unsigned>(call.op) >= kNumRedOps) {
    return error(Code::kInvalidArgument, "{}: {} is not a reduction operator", name,
                 static_cast<int>(call.op));
  }
  const size_t largest = (size_t{1} << 47) / type_size(call.type) /
                         (multiplies(call.operation) ? static_cast<size_t>(nranks) : 1);
  if (call.count > largest) {
    return error(Code::kInvalidArgument, "{}: a count of {} x {} on {} ranks is more than memory",
                 name, call.count, type_name(call.type), nranks);
  }
  if (call.root < 0 || call.root >= nranks) {
    return error(Code::kInvalidArgument, "{}: root {} is not a rank; there are {}", name, call.root,
                 nranks);
  }
  if (send_bytes(call, rank, nranks) > 0 && call.send == nullptr) {
    return error(Code::kInvalidArgument, "{}: the input is a null pointer", name);
  }
  if (recv_bytes(call, rank, nranks) > 0 && call.recv == nullptr) {
    return error(Code::kInvalidArgument, "{}: the output is a null pointer", name);
  }
  return check_aliasing(call, rank, nranks);
}

transport::Signature signature_of(const Context& context, const Collective& call) {
  transport::Signature signature;
  signature.operation = static_cast<uint8_t>(call.operation);
  signature.type = static_cast<uint8_t>(call.type);
  signature.red_op = static_cast<uint8_t>(call.op);
  signature.algorithm = static_cast<uint8_t>(context.algorithm);
  signature.root = call.root;
  signature.count = call.count;
  return signature;
}

Status run(Context& context, const Collective& call) {
  const int nranks = context.team.size();
  const size_t bytes =
      call.count * type_size(call.type) *
      (call.operation == Operation::kReduceScatter ? static_cast<size_t>(nranks) : 1);
  context.algorithm = plan::choose(call.operation, bytes, nranks, context.tuning);
  switch (call.operation) {
    case Operation::kAllReduce: return all_reduce(context, call);
    case Operation::kAllGather: return all_gather(context, call);
    case Operation::kReduceScatter: return reduce_scatter(context, call);
    case Operation::kBroadcast: return broadcast(context, call);
    case Operation::kBarrier: return barrier(context, call);
    default:
      return error(Code::kInternal, "{} is not a collective", operation_name(call.operation));
  }
}

}  // namespace zbccl::collectives
