#include "collectives/collective.h"

#include <cstdint>
#include <numeric>

#include "base/format.h"
#include "kernels/quantize.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

constexpr size_t kMostBytes = size_t{1} << 47;

// How many blocks of `count` elements each buffer has.
struct Multiples {
  size_t send = 1;
  size_t recv = 1;
};

Multiples multiples(const Collective& call, int rank, int nranks) {
  const auto n = static_cast<size_t>(nranks);
  const bool is_root = rank == call.root;
  switch (call.operation) {
    case Operation::kBarrier: return {0, 0};
    case Operation::kBroadcast: return {is_root ? size_t{1} : 0, 1};
    case Operation::kAllGather: return {1, n};
    case Operation::kReduceScatter: return {n, 1};
    case Operation::kReduce: return {1, is_root ? size_t{1} : 0};
    case Operation::kGather: return {1, is_root ? n : 0};
    case Operation::kScatter: return {is_root ? n : 0, 1};
    case Operation::kAllToAll: return {n, n};
    case Operation::kAllReduceRmsNorm: return {1, 0};
    default: return {1, 1};
  }
}

bool overlap(const void* a, size_t a_bytes, const void* b, size_t b_bytes) {
  const auto first = reinterpret_cast<uintptr_t>(a);
  const auto second = reinterpret_cast<uintptr_t>(b);
  return a_bytes > 0 && b_bytes > 0 && first < second + b_bytes && second < first + a_bytes;
}

// True where input and output share memory in the way that the operation allows.
bool is_in_place(const Collective& call, int rank) {
  const auto* send = static_cast<const std::byte*>(call.send);
  const auto* recv = static_cast<const std::byte*>(call.recv);
  switch (call.operation) {
    case Operation::kAllGather:
    case Operation::kAllGatherV:
    case Operation::kGather: return send == recv + recv_block(call, rank).offset;
    case Operation::kReduceScatter:
    case Operation::kReduceScatterV:
    case Operation::kScatter: return recv == send + send_block(call, rank).offset;
    case Operation::kAllToAllV: return false;
    default: return send == recv;
  }
}

// Where `recv` may lie inside `send` or the other way round.
Status check_aliasing(const Collective& call, int rank, int nranks) {
  const size_t in = send_bytes(call, rank, nranks);
  const size_t out = recv_bytes(call, rank, nranks);
  if (!overlap(call.send, in, call.recv, out) || is_in_place(call, rank)) return {};
  return error(Code::kInvalidArgument,
               "{}: input at {} and output at {} overlap; give the in-place position or separate "
               "ranges",
               operation_name(call.operation), call.send, static_cast<const void*>(call.recv));
}

Status check_code(const Collective& call) {
  if (!kernels::can_quantize(call.type)) {
    return error(Code::kInvalidArgument,
                 "all_reduce_quantized: the element type is {}; f32, f16 and bf16 can be quantised",
                 type_name(call.type));
  }
  if (kernels::is_code(call.code)) return {};
  return error(Code::kInvalidArgument, "all_reduce_quantized: the code is {}; give e4m3 or i8",
               static_cast<unsigned>(call.code) < kNumDataTypes
                   ? std::string(type_name(call.code))
                   : format("{}", static_cast<int>(call.code)));
}

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9fb21c651e98df25ULL;
  x = (x ^ (x >> 28)) * 0xd1342543de82ef95ULL;
  return x ^ (x >> 32);
}

}  // namespace

std::array<const void*, kMostBuffers> buffers_of(const Collective& call) {
  if (call.norm == nullptr) return {call.send, call.recv};
  const NormCall& norm = *call.norm;
  const kernels::NormOutputs& to = norm.outputs;
  return {call.send, norm.residual, norm.weight, to.residual_out,
          to.out,    to.codes,      to.scales,   to.exponents};
}

size_t send_bytes(const Collective& call, int rank, int nranks) {
  const size_t element = type_size(call.type);
  if (call.operation == Operation::kAllGatherV) return recv_block(call, rank).bytes;
  if (call.send_blocks != nullptr) return call.send_blocks->extent * element;
  return call.count * element * multiples(call, rank, nranks).send;
}

size_t recv_bytes(const Collective& call, int rank, int nranks) {
  const size_t element = type_size(call.type);
  if (call.operation == Operation::kReduceScatterV) return send_block(call, rank).bytes;
  if (call.recv_blocks != nullptr) return call.recv_blocks->extent * element;
  return call.count * element * multiples(call, rank, nranks).recv;
}

size_t payload_bytes(const Collective& call, int rank) {
  const size_t element = type_size(call.type);
  switch (call.operation) {
    case Operation::kAllGatherV: return recv_block(call, rank).bytes;
    case Operation::kReduceScatterV: return send_block(call, rank).bytes;
    case Operation::kAllToAllV: {
      const auto& counts = call.send_blocks->counts;
      return element * std::accumulate(counts.begin(), counts.end(), size_t{0});
    }
    default: return call.count * element;
  }
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
  if (call.root < 0 || call.root >= nranks) {
    return error(Code::kInvalidArgument, "{}: root {} is not a rank; there are {}", name, call.root,
                 nranks);
  }
  // Every rank sees the same limit, whatever its part.
  const bool multiplied =
      call.operation != Operation::kAllReduce && call.operation != Operation::kReduce &&
      call.operation != Operation::kBroadcast && call.operation != Operation::kAllReduceRmsNorm &&
      call.operation != Operation::kAllReduceQuantized;
  const size_t ranks = multiplied ? static_cast<size_t>(nranks) : 1;
  if (call.count > kMostBytes / 8 / ranks &&
      call.count > kMostBytes / type_size(call.type) / ranks) {
    return error(Code::kInvalidArgument, "{}: a count of {} x {} on {} ranks is more than memory",
                 name, call.count, type_name(call.type), nranks);
  }
  if (call.send == nullptr && send_bytes(call, rank, nranks) > 0) {
    return error(Code::kInvalidArgument, "{}: the input is a null pointer", name);
  }
  if (call.recv == nullptr && recv_bytes(call, rank, nranks) > 0) {
    return error(Code::kInvalidArgument, "{}: the output is a null pointer", name);
  }
  if (call.operation == Operation::kAllReduceRmsNorm) return check_norm(call);
  if (call.operation == Operation::kAllReduceQuantized) ZBCCL_RETURN_IF_ERROR(check_code(call));
  if (call.send == call.recv && is_in_place(call, rank)) return {};
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
  if (swaps_in_place(call)) signature.root = 1;
  if (call.operation == Operation::kAllReduceQuantized) {
    signature.root = static_cast<int32_t>(call.code);
  }
  if (call.operation == Operation::kAllReduceRmsNorm) describe_norm(*call.norm, &signature);
  if (!has_blocks(call.operation)) [[likely]] {
    return signature;
  }
  // The rows are for the peers' messages where sizes differ, and for all_to_all_v's offsets.
  const int nranks = context.team.size();
  transport::BlockRow* const rows = context.team.next_rows();
  const bool same_everywhere = call.operation != Operation::kAllToAllV;
  const Blocks& sizes =
      call.operation == Operation::kReduceScatterV ? *call.send_blocks : *call.recv_blocks;
  for (int r = 0; r < nranks; ++r) {
    const auto i = static_cast<size_t>(r);
    rows[r] = {};
    rows[r].recv_count = sizes.counts[i];
    if (same_everywhere) {
      signature.count += sizes.counts[i];
      signature.layout = mix(signature.layout ^ sizes.counts[i]) + i;
    } else {
      rows[r].send_count = call.send_blocks->counts[i];
      rows[r].send_offset = send_block(call, r).offset;
    }
  }
  return signature;
}

uint64_t tally_of(const Collective& call, int rank) {
  const auto pair = [](int from, int to, size_t count) {
    return mix(mix(static_cast<uint64_t>(from) << 32 | static_cast<uint64_t>(to)) + count);
  };
  uint64_t tally = 0;
  for (int r = 0; r < static_cast<int>(call.send_blocks->counts.size()); ++r) {
    tally += pair(rank, r, call.send_blocks->counts[static_cast<size_t>(r)]);
    tally -= pair(r, rank, call.recv_blocks->counts[static_cast<size_t>(r)]);
  }
  return tally;
}

Status pull(Context& context, int peer, const transport::BufferRef& shown, Extent from, void* to) {
  if (from.bytes == 0) return {};
  transport::RemoteBuffer source;
  ZBCCL_RETURN_IF_ERROR(source.resolve(context.team, peer, shown));
  return source.read(from.offset, to, from.bytes, from.bytes >= context.tuning.stream_min);
}

Status pull_blocks(Context& context, const Collective& call) {
  transport::Team& team = context.team;
  for (int step = 1; step < team.size(); ++step) {
    const int r = (team.rank() + step) % team.size();
    const Extent to = recv_block(call, r);
    ZBCCL_RETURN_IF_ERROR(
        pull(context, r, team.packet(r).input, {0, to.bytes}, at(call.recv, to.offset)));
  }
  return {};
}

Status run(Context& context, const Collective& call) {
  const int nranks = context.team.size();
  const size_t bytes =
      call.operation == Operation::kReduceScatterV
          ? call.send_blocks->extent * type_size(call.type)
          : call.count * type_size(call.type) *
                (call.operation == Operation::kReduceScatter ? static_cast<size_t>(nranks) : 1);
  context.algorithm = plan::choose(call.operation, bytes, nranks, context.tuning);
  switch (call.operation) {
    case Operation::kAllReduce:
    case Operation::kAllReduceQuantized: return all_reduce(context, call);
    case Operation::kAllReduceRmsNorm: return all_reduce_rms_norm(context, call);
    case Operation::kAllGather:
    case Operation::kAllGatherV: return all_gather(context, call);
    case Operation::kReduceScatter:
    case Operation::kReduceScatterV: return reduce_scatter(context, call);
    case Operation::kBroadcast: return broadcast(context, call);
    case Operation::kBarrier: return barrier(context, call);
    case Operation::kReduce: return reduce(context, call);
    case Operation::kGather: return gather(context, call);
    case Operation::kScatter: return scatter(context, call);
    case Operation::kAllToAll:
    case Operation::kAllToAllV: return all_to_all(context, call);
    default:
      return error(Code::kInternal, "{} is not a collective", operation_name(call.operation));
  }
}

}  // namespace zbccl::collectives
