// How every operation of the C boundary is made: now, as a group's, blocking or not.
#pragma once

#include <zbccl/zbccl.h>

#include <memory>
#include <utility>

#include "base/status.h"
#include "capi/group.h"
#include "capi/handles.h"
#include "comm/communicator.h"

namespace zbccl::capi {

inline Status check_how(const zbcclCall_t* call) {
  if (call == nullptr) return {};
  ZBCCL_RETURN_IF_ERROR(check_size(call->size, sizeof *call, "zbcclCall_t"));
  if (call->timeout_ms < 0) {
    return error(Code::kInvalidArgument, "zbcclCall_t.timeout_ms is {}", call->timeout_ms);
  }
  if (call->tag < 0) return error(Code::kInvalidArgument, "zbcclCall_t.tag is {}", call->tag);
  if (call->max_blocks >= 0) return {};
  return error(Code::kInvalidArgument, "zbcclCall_t.max_blocks is {}", call->max_blocks);
}

// Only messages have tags: nothing of a collective would match by one.
inline void note_tag(collectives::Collective& /*what*/, int /*tag*/) {}
inline void note_tag(comm::TransferCall& what, int tag) { what.tag = tag; }

inline Status start(zbcclComm_t comm, const collectives::Collective& what,
                    std::shared_ptr<comm::Work>* work) {
  return comm->object->run(what, work);
}

inline Status start(zbcclComm_t comm, const comm::TransferCall& what,
                    std::shared_ptr<comm::Work>* work) {
  return comm->object->transfer(what, work);
}

// Makes the call now, or notes it where the thread has a group open.
template <typename Call>
Status make(Call& what, zbcclComm_t comm, const zbcclCall_t* call) {
  const bool grouped = Group::open();
  Status status = check_handle(comm);
  if (status.ok()) status = check_how(call);
  if (!status.ok()) return Group::refuse(std::move(status));
  if (call != nullptr) {
    what.timeout = Milliseconds(call->timeout_ms);
    what.launch = {call->stream, call->max_blocks};
    note_tag(what, call->tag);
  }
  if (!grouped && (call == nullptr || call->work == nullptr)) [[likely]] {
    return start(comm, what, nullptr);
  }
  std::shared_ptr<comm::Work> work;
  std::shared_ptr<comm::Work>* const wanted =
      call != nullptr && call->work != nullptr ? &work : nullptr;
  ZBCCL_RETURN_IF_ERROR(grouped ? Group::of_this_thread().add(comm, std::move(what), wanted)
                                : start(comm, what, wanted));
  if (wanted != nullptr) *call->work = Shells<zbcclWork>::make(std::move(work));
  return {};
}

}  // namespace zbccl::capi
