#include "perf/operation.h"

#include <algorithm>
#include <array>
#include <zbccl/zbccl.hpp>

namespace zbccl::tools {
namespace {

struct Entry {
  Op op;
  const char* name;
};
constexpr std::array kOps = {Entry{Op::kAllReduce, "all_reduce"},
                             Entry{Op::kAllGather, "all_gather"},
                             Entry{Op::kReduceScatter, "reduce_scatter"},
                             Entry{Op::kBroadcast, "broadcast"},
                             Entry{Op::kSendRecv, "sendrecv"},
                             Entry{Op::kBarrier, "barrier"}};

std::byte* at(void* base, size_t bytes) { return static_cast<std::byte*>(base) + bytes; }

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

bool reduces(Op op) { return op == Op::kAllReduce || op == Op::kReduceScatter; }

bool has_data(Op op) { return op != Op::kBarrier; }

bool has_in_place(Op op) { return op != Op::kBarrier && op != Op::kSendRecv; }

Shape shape_of(Op op, size_t bytes, size_t element, int ranks) {
  const size_t elements = bytes / element;
  const size_t share = elements / static_cast<size_t>(ranks);
  const size_t whole = share * static_cast<size_t>(ranks);
  switch (op) {
    case Op::kAllGather: return {share, share, whole};
    case Op::kReduceScatter: return {share, whole, share};
    case Op::kBarrier: return {0, 0, 0};
    default: return {elements, elements, elements};
  }
}

double bus_factor(Op op, int ranks) {
  const double n = ranks;
  switch (op) {
    case Op::kAllReduce: return 2 * (n - 1) / n;
    case Op::kAllGather:
    case Op::kReduceScatter: return (n - 1) / n;
    default: return 1;
  }
}

Buffers in_place_buffers(Op op, void* base, const Shape& shape, size_t element, int rank) {
  const size_t offset = static_cast<size_t>(rank) * shape.count * element;
  if (op == Op::kAllGather) return {at(base, offset), base};
  if (op == Op::kReduceScatter) return {base, at(base, offset)};
  return {base, base};
}

void call(Communicator& comm, const CallSpec& spec, const Buffers& buffers, size_t count, int rank,
          int ranks) {
  switch (spec.op) {
    case Op::kAllReduce:
      comm.all_reduce(buffers.send, buffers.recv, count, spec.type, spec.redop);
      return;
    case Op::kAllGather: comm.all_gather(buffers.send, buffers.recv, count, spec.type); return;
    case Op::kReduceScatter:
      comm.reduce_scatter(buffers.send, buffers.recv, count, spec.type, spec.redop);
      return;
    case Op::kBroadcast:
      comm.broadcast(buffers.send, buffers.recv, count, spec.type, spec.root);
      return;
    case Op::kSendRecv: {
      Work sending = comm.send_async(buffers.send, count, spec.type, (rank + 1) % ranks);
      comm.recv(buffers.recv, count, spec.type, (rank + ranks - 1) % ranks);
      sending.wait();
      return;
    }
    case Op::kBarrier: comm.barrier(); return;
  }
}

}  // namespace zbccl::tools
