// Collectives, sends and receives, and the handles of asynchronous calls.
#include <zbccl/zbccl.h>

#include "capi/guard.h"
#include "capi/handles.h"

namespace {

using namespace zbccl;
using capi::check_handle;
using capi::check_pointer;
using capi::guard;
using collectives::Collective;

// Checks how the call is made and runs it; `body` takes (timeout, work or nullptr).
template <typename Body>
zbcclResult_t make_call(zbcclComm_t comm, const zbcclCall_t* call, Body&& body) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(comm));
    if (call == nullptr) return body(Milliseconds(0), nullptr);
    ZBCCL_RETURN_IF_ERROR(capi::check_size(call->size, sizeof *call, "zbcclCall_t"));
    if (call->timeout_ms < 0) {
      return error(Code::kInvalidArgument, "zbcclCall_t.timeout_ms is {}", call->timeout_ms);
    }
    if (call->stream != nullptr) {
      return error(Code::kUnsupported,
                   "a stream was given, but this build serves host memory only; leave it NULL");
    }
    const Milliseconds timeout(call->timeout_ms);
    if (call->work == nullptr) return body(timeout, nullptr);
    std::shared_ptr<comm::Work> work;
    ZBCCL_RETURN_IF_ERROR(body(timeout, &work));
    *call->work = capi::Shells<zbcclWork>::make(std::move(work));
    return {};
  });
}

zbcclResult_t run(Collective collective, zbcclComm_t comm, const zbcclCall_t* call) {
  return make_call(comm, call, [&](Milliseconds timeout, std::shared_ptr<comm::Work>* work) {
    collective.timeout = timeout;
    return comm->object->run(collective, work);
  });
}

Status check_type(zbcclDataType_t type) {
  if (static_cast<unsigned>(type) < kNumDataTypes) return {};
  return error(Code::kInvalidArgument, "{} is not an element type", static_cast<int>(type));
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

zbcclResult_t zbcclSend(const void* send, size_t count, zbcclDataType_t type, int peer,
                        zbcclComm_t comm, const zbcclCall_t* call) {
  return make_call(
      comm, call, [&](Milliseconds timeout, std::shared_ptr<comm::Work>* work) -> Status {
        ZBCCL_RETURN_IF_ERROR(check_type(type));
        return comm->object->send(send, count, static_cast<DataType>(type), peer, timeout, work);
      });
}

zbcclResult_t zbcclRecv(void* recv, size_t count, zbcclDataType_t type, int peer, zbcclComm_t comm,
                        const zbcclCall_t* call) {
  return make_call(
      comm, call, [&](Milliseconds timeout, std::shared_ptr<comm::Work>* work) -> Status {
        ZBCCL_RETURN_IF_ERROR(check_type(type));
        return comm->object->recv(recv, count, static_cast<DataType>(type), peer, timeout, work);
      });
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
