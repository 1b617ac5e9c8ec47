#include "perf/operation.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <zbccl/zbccl.hpp>

namespace zbccl::tools {
namespace {

struct Entry {
  Op op;
  const char* name;
};
constexpr std::array kOps = {Entry{Op::kAllReduce, "all_reduce"},
                             Entry{Op::kReduce, "reduce"},
                             Entry{Op::kAllGather, "all_gather"},
                             Entry{Op::kAllGatherV, "all_gather_v"},
                             Entry{Op::kReduceScatter, "reduce_scatter"},
                             Entry{Op::kReduceScatterV, "reduce_scatter_v"},
                             Entry{Op::kBroadcast, "broadcast"},
                             Entry{Op::kAllToAll, "all_to_all"},
                             Entry{Op::kAllToAllV, "all_to_all_v"},
                             Entry{Op::kGather, "gather"},
                             Entry{Op::kScatter, "scatter"},
                             Entry{Op::kSendRecv, "sendrecv"},
                             Entry{Op::kBarrier, "barrier"},
                             Entry{Op::kAllReduceRmsNorm, "all_reduce_rms_norm"},
                             Entry{Op::kAllReduceQuantized, "all_reduce_quantized"}};

constexpr size_t kHidden = 4096;  // elements of a row, where there are as many

std::byte* at(void* base, size_t bytes) { return static_cast<std::byte*>(base) + bytes; }

// Parts of one rank of all_to_all_v: what goes to each rank, or (`sign` -1) comes from it.
std::vector<size_t> turned(const std::vector<size_t>& parts, int rank, int sign) {
  const int ranks = static_cast<int>(parts.size());
  std::vector<size_t> row(parts.size());
  for (int peer = 0; peer < ranks; ++peer) {
    row[static_cast<size_t>(peer)] =
        parts[static_cast<size_t>((sign * (peer - rank) + ranks) % ranks)];
  }
  return row;
}

}  // namespace

std::optional<Op> parse_op(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  for (const Entry& entry : kOps) {
    if (name == entry.name) return entry.op;
  }
  return std::nullopt;
}

const char* op_name(Op op) {
  for (const Entry& entry : kOps) {
    if (op == entry.op) return entry.name;
  }
  return "unknown";
}

std::string op_names() {
  std::string names;
  for (size_t i = 0; i < kOps.size(); ++i) {
    if (i > 0) names += i + 1 < kOps.size() ? ", " : " or ";
    names += kOps[i].name;
  }
  return names;
}

bool reduces(Op op) {
  return op == Op::kAllReduce || op == Op::kReduce || op == Op::kReduceScatter ||
         op == Op::kReduceScatterV;
}

bool has_root(Op op) {
  return op == Op::kReduce || op == Op::kBroadcast || op == Op::kGather || op == Op::kScatter;
}

bool is_fused(Op op) { return op == Op::kAllReduceRmsNorm || op == Op::kAllReduceQuantized; }

bool serves_type(Op op, zbcclDataType_t type) {
  if (!is_fused(op)) return true;
  const bool half = type == zbcclBfloat16 || type == zbcclFloat16;
  return half || (op == Op::kAllReduceQuantized && type == zbcclFloat32);
}

bool has_data(Op op) { return op != Op::kBarrier; }

bool has_parts(Op op) {
  return op == Op::kAllGatherV || op == Op::kReduceScatterV || op == Op::kAllToAllV;
}

bool has_in_place(Op op) {
  return op != Op::kBarrier && op != Op::kSendRecv && op != Op::kAllToAllV;
}

bool gives(Op op, int rank, int root) {
  return (op != Op::kBroadcast && op != Op::kScatter) || rank == root;
}

bool gets(Op op, int rank, int root) {
  return (op != Op::kReduce && op != Op::kGather) || rank == root;
}

std::vector<size_t> uneven_parts(size_t elements, int ranks) {
  std::vector<uint64_t> weights(static_cast<size_t>(ranks));
  uint64_t state = 20'261'121;
  for (uint64_t& weight : weights) {
    state = state * 6'364'136'223'846'793'005ULL + 1'442'695'040'888'963'407ULL;
    weight = 1 + (state >> 60);
  }
  const uint64_t sum = std::accumulate(weights.begin(), weights.end(), uint64_t{0});
  std::vector<size_t> parts(weights.size());
  size_t left = elements;
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    parts[i] = elements / sum * weights[i] + elements % sum * weights[i] / sum;
    left -= parts[i];
  }
  parts.back() = left;
  return parts;
}

size_t offset_of(const std::vector<size_t>& parts, int index) {
  return std::accumulate(parts.begin(), parts.begin() + index, size_t{0});
}

Shape shape_of(Op op, size_t bytes, size_t element, int rank, int ranks) {
  const size_t elements = bytes / element;
  const size_t share = elements / static_cast<size_t>(ranks);
  const size_t whole = share * static_cast<size_t>(ranks);
  const auto mine = static_cast<size_t>(rank);
  switch (op) {
    case Op::kAllGather:
    case Op::kGather: return {share, share, whole, {}, {}};
    case Op::kReduceScatter:
    case Op::kScatter: return {share, whole, share, {}, {}};
    case Op::kAllToAll: return {share, whole, whole, {}, {}};
    case Op::kAllGatherV: {
      std::vector<size_t> parts = uneven_parts(elements, ranks);
      return {0, parts[mine], elements, {}, std::move(parts)};
    }
    case Op::kReduceScatterV: {
      std::vector<size_t> parts = uneven_parts(elements, ranks);
      return {0, elements, parts[mine], {}, std::move(parts)};
    }
    case Op::kAllToAllV: {
      const std::vector<size_t> parts = uneven_parts(elements, ranks);
      return {0, elements, elements, turned(parts, rank, 1), turned(parts, rank, -1)};
    }
    case Op::kBarrier: return {};
    case Op::kAllReduceRmsNorm: {
      const size_t hidden = std::clamp(elements / 8 * 8, size_t{8}, kHidden);
      const size_t whole_rows = elements / hidden * hidden;
      return {whole_rows, whole_rows, whole_rows, {}, {}, hidden};
    }
    default: return {elements, elements, elements, {}, {}};
  }
}

double bus_factor(Op op, int ranks) {
  const double n = ranks;
  switch (op) {
    case Op::kAllReduce:
    case Op::kAllReduceRmsNorm:
    case Op::kAllReduceQuantized: return 2 * (n - 1) / n;
    case Op::kReduce:
    case Op::kBroadcast:
    case Op::kSendRecv:
    case Op::kBarrier: return 1;
    default: return (n - 1) / n;
  }
}

Buffers in_place_buffers(Op op, void* base, const Shape& shape, size_t element, int rank) {
  const size_t share = static_cast<size_t>(rank) * shape.count * element;
  switch (op) {
    case Op::kAllGather:
    case Op::kGather: return {at(base, share), base};
    case Op::kReduceScatter:
    case Op::kScatter: return {base, at(base, share)};
    case Op::kAllGatherV: return {at(base, offset_of(shape.recv_parts, rank) * element), base};
    case Op::kReduceScatterV: return {base, at(base, offset_of(shape.recv_parts, rank) * element)};
    default: return {base, base};
  }
}

namespace {

struct Quant {
  const char* name;
  zbcclNormCodes_t form;
};
constexpr std::array kNormQuants = {
    Quant{"none", zbcclNormNoCodes}, Quant{"fp8_tensor", zbcclNormTensorScale},
    Quant{"fp8", zbcclNormGroupScales}, Quant{"fp8_pow2", zbcclNormGroupPowersOfTwo}};

}  // namespace

bool parse_quant(Op op, const std::string& name, CallSpec* spec) {
  if (name.empty()) return true;
  if (op == Op::kAllReduceQuantized) {
    spec->code = name == "int8" ? zbcclInt8 : zbcclFloat8e4m3;
    return name == "int8" || name == "fp8";
  }
  if (op != Op::kAllReduceRmsNorm) return false;
  const auto found = std::find_if(kNormQuants.begin(), kNormQuants.end(),
                                  [&](const Quant& quant) { return name == quant.name; });
  if (found == kNormQuants.end()) return false;
  spec->norm_codes = found->form;
  return true;
}

const char* quant_name(const CallSpec& spec) {
  if (spec.op == Op::kAllReduceQuantized) return spec.code == zbcclInt8 ? "int8" : "fp8";
  if (spec.op != Op::kAllReduceRmsNorm) return "";
  return kNormQuants[static_cast<size_t>(spec.norm_codes)].name;
}

size_t extra_bytes(Op op, size_t max_bytes) {
  return op == Op::kAllReduceRmsNorm ? 2 * max_bytes + kHidden * 2 : 0;
}

// Codes in the place of the rows, where they are asked for, and their scales behind them: what the
// next multiplication takes.
static void call_norm(zbcclComm_t comm, const CallSpec& spec, const Buffers& buffers,
                      const Shape& shape, const zbcclCall_t* how) {
  const size_t bytes = shape.count * zbcclTypeSize(spec.type);
  zbcclRmsNorm_t args = ZBCCL_RMS_NORM_INITIALIZER;
  args.x = buffers.send;
  if (spec.norm_codes == zbcclNormNoCodes) {
    args.out = buffers.recv;
  } else {
    args.codes = buffers.recv;
    args.code_form = spec.norm_codes;
    if (spec.norm_codes != zbcclNormTensorScale) {
      args.scales = reinterpret_cast<float*>(at(buffers.recv, shape.count));
    }
  }
  args.residual = buffers.extra;
  args.residual_out = at(buffers.extra, bytes);
  args.weight = at(buffers.extra, 2 * bytes);
  args.tokens = shape.count / shape.hidden;
  args.hidden = shape.hidden;
  args.type = spec.type;
  check(zbcclAllReduceRmsNorm(&args, comm, how));
}

void call(Communicator& comm, const CallSpec& spec, const Buffers& buffers, const Shape& shape,
          int rank, int ranks, const zbcclCall_t* how) {
  const void* const send = buffers.send;
  void* const recv = buffers.recv;
  const size_t count = shape.count;
  zbcclComm_t c = comm.get();
  const zbcclDataType_t type = spec.type;
  const size_t* const recv_parts = shape.recv_parts.data();
  // By the C functions: what is measured is the library, not the header around it.
  switch (spec.op) {
    case Op::kAllReduceRmsNorm: return call_norm(c, spec, buffers, shape, how);
    case Op::kAllReduceQuantized:
      return check(zbcclAllReduceQuantized(send, recv, count, type, spec.code, c, how));
    case Op::kAllReduce: return check(zbcclAllReduce(send, recv, count, type, spec.redop, c, how));
    case Op::kReduce:
      return check(zbcclReduce(send, recv, count, type, spec.redop, spec.root, c, how));
    case Op::kAllGather: return check(zbcclAllGather(send, recv, count, type, c, how));
    case Op::kAllGatherV:
      return check(zbcclAllGatherV(send, recv, recv_parts, nullptr, type, c, how));
    case Op::kReduceScatter:
      return check(zbcclReduceScatter(send, recv, count, type, spec.redop, c, how));
    case Op::kReduceScatterV:
      return check(zbcclReduceScatterV(send, recv, recv_parts, type, spec.redop, c, how));
    case Op::kBroadcast: return check(zbcclBroadcast(send, recv, count, type, spec.root, c, how));
    case Op::kAllToAll: return check(zbcclAllToAll(send, recv, count, type, c, how));
    case Op::kAllToAllV:
      return check(zbcclAllToAllV(send, shape.send_parts.data(), nullptr, recv, recv_parts, nullptr,
                                  type, c, how));
    case Op::kGather: return check(zbcclGather(send, recv, count, type, spec.root, c, how));
    case Op::kScatter: return check(zbcclScatter(send, recv, count, type, spec.root, c, how));
    case Op::kSendRecv: {
      Group group;  // both at once, as nccl-tests makes them
      check(zbcclSend(send, count, type, (rank + 1) % ranks, c, how));
      check(zbcclRecv(recv, count, type, (rank + ranks - 1) % ranks, c, how));
      return group.finish();
    }
    case Op::kBarrier: return check(zbcclBarrier(c, how));
  }
}

std::vector<Moved> moves_of(const CallSpec& spec, const Shape& shape, int rank, int ranks) {
  std::vector<Moved> moves;
  if (!has_data(spec.op) || reduces(spec.op) || is_fused(spec.op) ||
      !gets(spec.op, rank, spec.root))
    return moves;
  const size_t count = shape.count;
  if (spec.op == Op::kBroadcast) return {{spec.root, 0, 0, count}};
  if (spec.op == Op::kSendRecv) return {{(rank + ranks - 1) % ranks, 0, 0, count}};
  if (spec.op == Op::kScatter) return {{spec.root, static_cast<size_t>(rank) * count, 0, count}};
  moves.reserve(static_cast<size_t>(ranks));
  size_t recv_first = 0;
  for (int peer = 0; peer < ranks; ++peer) {
    Moved move = {peer, 0, recv_first, count};
    if (spec.op == Op::kAllToAll) move.send_first = static_cast<size_t>(rank) * count;
    if (!shape.recv_parts.empty()) move.count = shape.recv_parts[static_cast<size_t>(peer)];
    if (spec.op == Op::kAllToAllV) {
      // The peer's row is this rank's, turned back and on to the peer.
      const auto parts = turned(shape.send_parts, -rank, 1);
      move.send_first = offset_of(turned(parts, peer, 1), rank);
    }
    moves.push_back(move);
    recv_first += move.count;
  }
  return moves;
}

}  // namespace zbccl::tools
