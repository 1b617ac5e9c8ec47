#include "perf/cuda_nccl.h"

#include <array>
#include <cstring>
#include <exception>

namespace zbccl::tools {
namespace {

constexpr int kNone = -1;
// ncclDataType_t by our types: f32 f64 f16 bf16 e4m3 e5m2 i8 u8 i32 u32 i64 u64 i16 u16.
constexpr std::array<int, zbcclNumTypes> kNcclTypes = {7, 8, 6, 9, 10, 11, 0,
                                                       1, 2, 3, 4, 5,  -1, -1};
// ncclRedOp_t by our operators: sum prod min max avg.
constexpr std::array<int, zbcclNumOps> kNcclOps = {0, 1, 3, 2, 4};

int nccl_type(zbcclDataType_t type) { return kNcclTypes[static_cast<size_t>(type)]; }

}  // namespace

struct CudaNccl::Call {
  const CallSpec& spec;
  const Shape& shape;
  const std::byte* send;
  std::byte* recv;
  size_t element;
  int type;
  int op;
  cudaStream_t stream;
};

CudaNccl::CudaNccl(const NcclLibrary& library, Communicator& control)
    : library_(library), rank_(control.rank()), ranks_(control.size()) {
  Buffer<std::byte> shared(sizeof(NcclUniqueId));
  NcclUniqueId id = {};
  if (rank_ == 0) library_.check(library_.get_unique_id(&id), "ncclGetUniqueId");
  std::memcpy(shared.data(), &id, sizeof id);
  control.broadcast(shared.span(), 0);
  std::memcpy(&id, shared.data(), sizeof id);
  library_.check(library_.comm_init_rank(&comm_, ranks_, id, rank_), "ncclCommInitRank");
}

CudaNccl::~CudaNccl() {
  // Destroying waits for the other ranks, which an error may have kept from coming.
  if (std::uncaught_exceptions() > 0) {
    (void)library_.comm_abort(comm_);
  } else {
    (void)library_.comm_destroy(comm_);
  }
}

bool CudaNccl::has(const CallSpec& spec) { return nccl_type(spec.type) != kNone; }

void CudaNccl::call(const CallSpec& spec, const Buffers& buffers, const Shape& shape,
                    cudaStream_t stream) {
  const Call c = {spec,
                  shape,
                  static_cast<const std::byte*>(buffers.send),
                  static_cast<std::byte*>(buffers.recv),
                  zbcclTypeSize(spec.type),
                  nccl_type(spec.type),
                  kNcclOps[static_cast<size_t>(spec.redop)],
                  stream};
  const NcclLibrary& n = library_;
  const size_t count = shape.count;
  switch (spec.op) {
    case Op::kAllReduce:
      return n.check(n.all_reduce(c.send, c.recv, count, c.type, c.op, comm_, stream),
                     "ncclAllReduce", comm_);
    case Op::kAllGather:
      return n.check(n.all_gather(c.send, c.recv, count, c.type, comm_, stream), "ncclAllGather",
                     comm_);
    case Op::kReduceScatter:
      return n.check(n.reduce_scatter(c.send, c.recv, count, c.type, c.op, comm_, stream),
                     "ncclReduceScatter", comm_);
    case Op::kAllToAll:
      if (n.all_to_all == nullptr) return exchange(c);
      return n.check(n.all_to_all(c.send, c.recv, count, c.type, comm_, stream), "ncclAlltoAll",
                     comm_);
    case Op::kReduce:
    case Op::kBroadcast: return rooted(c);
    case Op::kReduceScatterV: return reduce_parts(c);
    case Op::kBarrier:
      // The smallest thing that no rank leaves before all have come.
      return n.check(n.all_reduce(c.send, c.recv, 1, c.type, c.op, comm_, stream), "ncclAllReduce",
                     comm_);
    default: return exchange(c);
  }
}

void CudaNccl::rooted(const Call& c) {
  const NcclLibrary& n = library_;
  const size_t count = c.shape.count;
  if (c.spec.op == Op::kReduce) {
    return n.check(n.reduce(c.send, c.recv, count, c.type, c.op, c.spec.root, comm_, c.stream),
                   "ncclReduce", comm_);
  }
  n.check(n.broadcast(c.send, c.recv, count, c.type, c.spec.root, comm_, c.stream), "ncclBroadcast",
          comm_);
}

// Each rank's part is a reduction with that rank as the root.
void CudaNccl::reduce_parts(const Call& c) {
  const NcclLibrary& n = library_;
  n.check(n.group_start(), "ncclGroupStart", comm_);
  for (int root = 0; root < ranks_; ++root) {
    const size_t count = c.shape.recv_parts[static_cast<size_t>(root)];
    const size_t first = offset_of(c.shape.recv_parts, root) * c.element;
    if (count == 0) continue;
    n.check(n.reduce(c.send + first, c.recv, count, c.type, c.op, root, comm_, c.stream),
            "ncclReduce", comm_);
  }
  n.check(n.group_end(), "ncclGroupEnd", comm_);
}

// What this rank sends each peer, and gets of each, as moves_of() says of every rank.
void CudaNccl::exchange(const Call& c) {
  const NcclLibrary& n = library_;
  n.check(n.group_start(), "ncclGroupStart", comm_);
  for (int peer = 0; peer < ranks_; ++peer) {
    const size_t share = static_cast<size_t>(peer) * c.shape.count;
    size_t first = 0;
    size_t count = c.shape.count;
    switch (c.spec.op) {
      case Op::kScatter:
        if (rank_ != c.spec.root) continue;
        first = share;
        break;
      case Op::kAllToAll: first = share; break;
      case Op::kAllToAllV:
        first = offset_of(c.shape.send_parts, peer);
        count = c.shape.send_parts[static_cast<size_t>(peer)];
        break;
      case Op::kGather:
        if (peer != c.spec.root) continue;
        break;
      case Op::kAllGatherV: count = c.shape.send; break;
      default:
        if (peer != (rank_ + 1) % ranks_) continue;
    }
    if (count == 0) continue;
    n.check(n.send(c.send + first * c.element, count, c.type, peer, comm_, c.stream), "ncclSend",
            comm_);
  }
  for (const Moved& move : moves_of(c.spec, c.shape, rank_, ranks_)) {
    if (move.count == 0) continue;
    n.check(n.recv(c.recv + move.recv_first * c.element, move.count, c.type, move.from, comm_,
                   c.stream),
            "ncclRecv", comm_);
  }
  n.check(n.group_end(), "ncclGroupEnd", comm_);
}

}  // namespace zbccl::tools
