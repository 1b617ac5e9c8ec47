// Collectives, sends and receives, and the handles of asynchronous calls.
#include <zbccl/zbccl.h>

#include "capi/call.h"
#include "capi/guard.h"
#include "capi/handles.h"

namespace {

using namespace zbccl;
using capi::check_handle;
using capi::check_pointer;
using capi::guard;
using capi::make;
using collectives::Blocks;
using collectives::Collective;

zbcclResult_t run(Collective what, zbcclComm_t comm, const zbcclCall_t* call) {
  return guard([&] { return make(what, comm, call); });
}

// For the forms with per-rank sizes, whose arrays `fill` reads for the given number of ranks.
template <typename Fill>
zbcclResult_t run_blocks(Collective what, zbcclComm_t comm, const zbcclCall_t* call, Fill&& fill) {
  return guard([&]() -> Status {
    Status status = check_handle(comm);
    if (status.ok()) status = fill(what, comm->object->size());
    if (!status.ok()) {
      return capi::Group::refuse(status.with_prefix(operation_name(what.operation)));
    }
    return make(what, comm, call);
  });
}

zbcclResult_t transfer(bool is_send, void* data, size_t count, zbcclDataType_t type, int peer,
                       zbcclComm_t comm, const zbcclCall_t* call) {
  return guard([&] {
    comm::TransferCall what{is_send, data, count, static_cast<DataType>(type), peer};
    return make(what, comm, call);
  });
}

}  // namespace

extern "C" {

zbcclResult_t zbcclAllReduce(const void* send, void* recv, size_t count, zbcclDataType_t type,
                             zbcclRedOp_t op, zbcclComm_t comm, const zbcclCall_t* call) {
  return run({Operation::kAllReduce, send, recv, count, static_cast<DataType>(type),
              static_cast<RedOp>(op)},
             comm, call);
}

zbcclResult_t zbcclAllGather(const void* send, void* recv, size_t count, zbcclDataType_t type,
                             zbcclComm_t comm, const zbcclCall_t* call) {
  return run({Operation::kAllGather, send, recv, count, static_cast<DataType>(type)}, comm, call);
}

zbcclResult_t zbcclReduceScatter(const void* send, void* recv, size_t count, zbcclDataType_t type,
                                 zbcclRedOp_t op, zbcclComm_t comm, const zbcclCall_t* call) {
  return run({Operation::kReduceScatter, send, recv, count, static_cast<DataType>(type),
              static_cast<RedOp>(op)},
             comm, call);
}

zbcclResult_t zbcclBroadcast(const void* send, void* recv, size_t count, zbcclDataType_t type,
                             int root, zbcclComm_t comm, const zbcclCall_t* call) {
  return run(
      {Operation::kBroadcast, send, recv, count, static_cast<DataType>(type), RedOp::kSum, root},
      comm, call);
}

zbcclResult_t zbcclBarrier(zbcclComm_t comm, const zbcclCall_t* call) {
  return run({Operation::kBarrier}, comm, call);
}

zbcclResult_t zbcclReduce(const void* send, void* recv, size_t count, zbcclDataType_t type,
                          zbcclRedOp_t op, int root, zbcclComm_t comm, const zbcclCall_t* call) {
  return run({Operation::kReduce, send, recv, count, static_cast<DataType>(type),
              static_cast<RedOp>(op), root},
             comm, call);
}

zbcclResult_t zbcclGather(const void* send, void* recv, size_t count, zbcclDataType_t type,
                          int root, zbcclComm_t comm, const zbcclCall_t* call) {
  return run(
      {Operation::kGather, send, recv, count, static_cast<DataType>(type), RedOp::kSum, root}, comm,
      call);
}

zbcclResult_t zbcclScatter(const void* send, void* recv, size_t count, zbcclDataType_t type,
                           int root, zbcclComm_t comm, const zbcclCall_t* call) {
  return run(
      {Operation::kScatter, send, recv, count, static_cast<DataType>(type), RedOp::kSum, root},
      comm, call);
}

zbcclResult_t zbcclAllToAll(const void* send, void* recv, size_t count, zbcclDataType_t type,
                            zbcclComm_t comm, const zbcclCall_t* call) {
  return run({Operation::kAllToAll, send, recv, count, static_cast<DataType>(type)}, comm, call);
}

zbcclResult_t zbcclAllGatherV(const void* send, void* recv, const size_t* counts,
                              const size_t* offsets, zbcclDataType_t type, zbcclComm_t comm,
                              const zbcclCall_t* call) {
  return run_blocks({Operation::kAllGatherV, send, recv, 0, static_cast<DataType>(type)}, comm,
                    call, [&](Collective& what, int nranks) -> Status {
                      ZBCCL_ASSIGN_OR_RETURN(what.recv_blocks,
                                             Blocks::make(counts, offsets, nranks, false));
                      return {};
                    });
}

zbcclResult_t zbcclReduceScatterV(const void* send, void* recv, const size_t* counts,
                                  zbcclDataType_t type, zbcclRedOp_t op, zbcclComm_t comm,
                                  const zbcclCall_t* call) {
  return run_blocks({Operation::kReduceScatterV, send, recv, 0, static_cast<DataType>(type),
                     static_cast<RedOp>(op)},
                    comm, call, [&](Collective& what, int nranks) -> Status {
                      ZBCCL_ASSIGN_OR_RETURN(what.send_blocks,
                                             Blocks::make(counts, nullptr, nranks, false));
                      return {};
                    });
}

zbcclResult_t zbcclAllToAllV(const void* send, const size_t* send_counts,
                             const size_t* send_offsets, void* recv, const size_t* recv_counts,
                             const size_t* recv_offsets, zbcclDataType_t type, zbcclComm_t comm,
                             const zbcclCall_t* call) {
  return run_blocks({Operation::kAllToAllV, send, recv, 0, static_cast<DataType>(type)}, comm, call,
                    [&](Collective& what, int nranks) -> Status {
                      ZBCCL_ASSIGN_OR_RETURN(what.send_blocks,
                                             Blocks::make(send_counts, send_offsets, nranks, true));
                      ZBCCL_ASSIGN_OR_RETURN(
                          what.recv_blocks, Blocks::make(recv_counts, recv_offsets, nranks, false));
                      return {};
                    });
}

zbcclResult_t zbcclSend(const void* send, size_t count, zbcclDataType_t type, int peer,
                        zbcclComm_t comm, const zbcclCall_t* call) {
  return transfer(true, const_cast<void*>(send), count, type, peer, comm, call);
}

zbcclResult_t zbcclRecv(void* recv, size_t count, zbcclDataType_t type, int peer, zbcclComm_t comm,
                        const zbcclCall_t* call) {
  return transfer(false, recv, count, type, peer, comm, call);
}

zbcclResult_t zbcclWorkWait(zbcclWork_t work, int64_t timeout_ms) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(work));
    if (timeout_ms < 0) return error(Code::kInvalidArgument, "timeout_ms is {}", timeout_ms);
    const auto object = work->object;  // the handle may be freed while this thread waits
    return object->wait(Milliseconds(timeout_ms));
  });
}

zbcclResult_t zbcclWorkTest(zbcclWork_t work, int* done) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(work));
    ZBCCL_RETURN_IF_ERROR(check_pointer(done, "done"));
    *done = work->object->done() ? 1 : 0;
    return *done != 0 ? work->object->status() : Status();
  });
}

zbcclResult_t zbcclWorkFree(zbcclWork_t work) {
  return guard([&]() -> Status {
    if (work == nullptr) return {};
    ZBCCL_RETURN_IF_ERROR(check_handle(work));
    (void)capi::Shells<zbcclWork>::take(work);
    return {};
  });
}

}  // extern "C"
