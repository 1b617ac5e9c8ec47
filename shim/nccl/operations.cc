// Collectives, sends and receives.
#include <zbccl/zbccl.h>

#include "call.h"
#include "define.h"
#include "group.h"
#include "premultiplied.h"

namespace zbccl::nccl {
namespace {

zbcclDataType_t type_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8: return zbcclInt8;
    case ncclUint8: return zbcclUint8;
    case ncclInt32: return zbcclInt32;
    case ncclUint32: return zbcclUint32;
    case ncclInt64: return zbcclInt64;
    case ncclUint64: return zbcclUint64;
    case ncclFloat16: return zbcclFloat16;
    case ncclFloat32: return zbcclFloat32;
    case ncclFloat64: return zbcclFloat64;
    case ncclBfloat16: return zbcclBfloat16;
    case ncclFloat8e4m3: return zbcclFloat8e4m3;
    case ncclFloat8e5m2: return zbcclFloat8e5m2;
    default: return zbcclNumTypes;
  }
}

zbcclRedOp_t op_of(ncclRedOp_t op) {
  switch (op) {
    case ncclProd: return zbcclProd;
    case ncclMax: return zbcclMax;
    case ncclMin: return zbcclMin;
    case ncclAvg: return zbcclAvg;
    default: return zbcclSum;  // of a made operator, whose factor was applied before
  }
}

ncclResult_t check_operator(const Call& call) {
  if (!is_made_operator(call) && call.op >= 0) [[likely]] {
    return ncclSuccess;
  }
  const Operator* const found = find_operator(static_cast<const ncclComm*>(call.comm), call.op);
  if (found == nullptr) {
    return fail(ncclInvalidArgument, "{} is no reduction operator of this communicator",
                static_cast<int>(call.op));
  }
  if (found->type == call.type) return ncclSuccess;
  return fail(ncclInvalidArgument, "the operator was made for another element type");
}

// What must be right whatever the count is; zbccl checks the rest.
ncclResult_t check(const Call& call) {
  ZBCCL_NCCL_TRY(check_usable(call.comm));
  if (static_cast<unsigned>(call.type) >= ncclNumTypes) {
    return fail(ncclInvalidArgument, "{} is not an element type", static_cast<int>(call.type));
  }
  if (call.peer < 0 || call.peer >= call.comm->nranks) {
    return fail(ncclInvalidArgument, "{} is not a rank; there are {}", call.peer,
                call.comm->nranks);
  }
  return check_operator(call);
}

}  // namespace

bool on_device(const Call& call) {
  return driver::is_device_memory(call.recv) || driver::is_device_memory(call.send);
}

zbcclResult_t start(const Call& call, cudaStream_t stream) {
  zbcclCall_t how = ZBCCL_CALL_INITIALIZER;
  how.stream = stream;
  const zbcclDataType_t type = type_of(call.type);
  const zbcclRedOp_t op = op_of(call.op);
  zbcclComm_t comm = call.comm->inner;
  switch (call.kind) {
    case Kind::kAllReduce:
      return zbcclAllReduce(call.send, call.recv, call.count, type, op, comm, &how);
    case Kind::kAllGather:
      return zbcclAllGather(call.send, call.recv, call.count, type, comm, &how);
    case Kind::kReduceScatter:
      return zbcclReduceScatter(call.send, call.recv, call.count, type, op, comm, &how);
    case Kind::kBroadcast:
      return zbcclBroadcast(call.send, call.recv, call.count, type, call.peer, comm, &how);
    case Kind::kReduce:
      return zbcclReduce(call.send, call.recv, call.count, type, op, call.peer, comm, &how);
    case Kind::kGather:
      return zbcclGather(call.send, call.recv, call.count, type, call.peer, comm, &how);
    case Kind::kScatter:
      return zbcclScatter(call.send, call.recv, call.count, type, call.peer, comm, &how);
    case Kind::kAllToAll: return zbcclAllToAll(call.send, call.recv, call.count, type, comm, &how);
    case Kind::kSend: return zbcclSend(call.send, call.count, type, call.peer, comm, &how);
    case Kind::kRecv: return zbcclRecv(call.recv, call.count, type, call.peer, comm, &how);
  }
  return zbcclInternalError;
}

ncclResult_t drain_stream(const Call& call) {
  cudaStream_t stream = stream_of(call);
  return stream == nullptr ? ncclSuccess : driver::drain(stream, call.comm->device);
}

ncclResult_t run(const Call& call) {
  const InUse use(call.comm);
  ZBCCL_NCCL_TRY(use.check());
  if (is_made_operator(call)) [[unlikely]] {
    return run_premultiplied({&call, 1});
  }
  cudaStream_t stream = stream_of(call);
  const zbcclResult_t result = start(call, stream);
  if (result == zbcclSuccess) [[likely]] {
    return ncclSuccess;
  }
  // zbccl takes no stream for host memory.
  if (result != zbcclUnsupported || stream == nullptr || on_device(call)) return result_of(result);
  ZBCCL_NCCL_TRY(drain_stream(call));
  return result_of(start(call, nullptr));
}

ncclResult_t make(const Call& call) {
  return guard([&]() -> ncclResult_t {
    if (const ncclResult_t wrong = check(call); wrong != ncclSuccess) [[unlikely]] {
      return Group::open() ? Group::of_this_thread().refuse(wrong) : wrong;
    }
    // As in NCCL, what moves nothing meets nobody.
    if (call.count == 0) return ncclSuccess;
    if (!Group::open()) return run(call);
    return Group::of_this_thread().add(call);
  });
}

}  // namespace zbccl::nccl

using zbccl::nccl::Kind;

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclAllReduce,
                  (const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                   ncclComm_t comm, cudaStream_t stream)) {
  return zbccl::nccl::make({Kind::kAllReduce, send, recv, count, type, op, 0, comm, stream});
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclAllGather,
                  (const void* send, void* recv, size_t count, ncclDataType_t type, ncclComm_t comm,
                   cudaStream_t stream)) {
  return zbccl::nccl::make({Kind::kAllGather, send, recv, count, type, ncclSum, 0, comm, stream});
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclReduceScatter,
                  (const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                   ncclComm_t comm, cudaStream_t stream)) {
  return zbccl::nccl::make({Kind::kReduceScatter, send, recv, count, type, op, 0, comm, stream});
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclBroadcast,
                  (const void* send, void* recv, size_t count, ncclDataType_t type, int root,
                   ncclComm_t comm, cudaStream_t stream)) {
  return zbccl::nccl::make(
      {Kind::kBroadcast, send, recv, count, type, ncclSum, root, comm, stream});
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclBcast,
                  (void* buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                   cudaStream_t stream)) {
  return zbccl::nccl::make(
      {Kind::kBroadcast, buffer, buffer, count, type, ncclSum, root, comm, stream});
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclReduce,
                  (const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                   int root, ncclComm_t comm, cudaStream_t stream)) {
  return zbccl::nccl::make({Kind::kReduce, send, recv, count, type, op, root, comm, stream});
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclGather,
                  (const void* send, void* recv, size_t count, ncclDataType_t type, int root,
                   ncclComm_t comm, cudaStream_t stream)) {
  return zbccl::nccl::make({Kind::kGather, send, recv, count, type, ncclSum, root, comm, stream});
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclScatter,
                  (const void* send, void* recv, size_t count, ncclDataType_t type, int root,
                   ncclComm_t comm, cudaStream_t stream)) {
  return zbccl::nccl::make({Kind::kScatter, send, recv, count, type, ncclSum, root, comm, stream});
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclAlltoAll,
                  (const void* send, void* recv, size_t count, ncclDataType_t type, ncclComm_t comm,
                   cudaStream_t stream)) {
  return zbccl::nccl::make({Kind::kAllToAll, send, recv, count, type, ncclSum, 0, comm, stream});
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclSend,
                  (const void* send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                   cudaStream_t stream)) {
  return zbccl::nccl::make({Kind::kSend, send, nullptr, count, type, ncclSum, peer, comm, stream});
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclRecv,
                  (void* recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                   cudaStream_t stream)) {
  return zbccl::nccl::make({Kind::kRecv, nullptr, recv, count, type, ncclSum, peer, comm, stream});
}
