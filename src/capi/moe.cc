// Expert parallelism: dispatch and combine.
#include "moe/moe.h"

#include <zbccl/moe.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <vector>

#include "capi/call.h"
#include "capi/group.h"
#include "capi/guard.h"
#include "capi/handles.h"
#include "memory/device_memory.h"
#include "moe/handle.h"

namespace zbccl::capi {
namespace {

// A send phase whose receive phase has not been called.
struct Begun {
  Operation operation;
  std::shared_ptr<comm::Work> work;  // null on the device
};

struct MoeObject {
  std::shared_ptr<moe::Moe> moe;
  zbcclComm_t comm = nullptr;
  uint64_t comm_generation = 0;
};

struct HandleObject {
  std::shared_ptr<moe::Handle> handle;
  zbcclMoe_t moe = nullptr;
  uint64_t moe_generation = 0;
  std::deque<Begun> begun;
  // Arrays of a Route that its first Dispatch makes, until that is called.
  std::vector<const void*> later;
};

}  // namespace
}  // namespace zbccl::capi

struct zbcclMoe {
  static constexpr const char* kName = "moe object";
  std::shared_ptr<zbccl::capi::MoeObject> object;
  uint64_t generation = 0;
};

struct zbcclMoeHandle {
  static constexpr const char* kName = "moe handle";
  std::shared_ptr<zbccl::capi::HandleObject> object;
  uint64_t generation = 0;
};

namespace {

using namespace zbccl;
using capi::check_handle;
using capi::check_pointer;
using capi::guard;

Status check_call(const zbcclCall_t* call) {
  if (capi::Group::open()) {
    return capi::Group::refuse(error(Code::kInvalidUsage,
                                     "dispatch and combine cannot be part of a group; end it "
                                     "first"));
  }
  return capi::check_how(call);
}

Status check_moe(zbcclMoe_t moe) {
  ZBCCL_RETURN_IF_ERROR(check_handle(moe));
  const capi::MoeObject& object = *moe->object;
  if (object.comm->object != nullptr && object.comm->generation == object.comm_generation) {
    return {};
  }
  return error(Code::kInvalidUsage,
               "the communicator of this moe object was destroyed; destroy the object before it");
}

Status check_moe_handle(zbcclMoeHandle_t handle) {
  ZBCCL_RETURN_IF_ERROR(check_handle(handle));
  const capi::HandleObject& object = *handle->object;
  if (object.moe->object == nullptr || object.moe->generation != object.moe_generation) {
    return error(Code::kInvalidUsage,
                 "the handle is stale: its moe object was destroyed; route again");
  }
  return check_moe(object.moe);
}

// A struct of the caller's, or what is wrong with it; the others hear of that.
template <typename Struct>
Status take(const Struct* given, const char* name, Struct* copy) {
  ZBCCL_RETURN_IF_ERROR(check_pointer(given, name));
  ZBCCL_RETURN_IF_ERROR(capi::check_size(given->size, sizeof *given, name));
  *copy = *given;
  return {};
}

Milliseconds timeout_of(const zbcclCall_t* call) {
  return Milliseconds(call == nullptr ? 0 : call->timeout_ms);
}

Status start(zbcclComm_t comm, comm::Task task, const zbcclCall_t* call,
             std::shared_ptr<comm::Work>* work) {
  if (call != nullptr) task.launch = {call->stream, call->max_blocks};
  return comm->object->run(std::move(task), work);
}

// Blocks, or gives the caller a handle of the work.
Status make(zbcclComm_t comm, comm::Task task, const zbcclCall_t* call) {
  if (call == nullptr || call->work == nullptr) return start(comm, std::move(task), call, nullptr);
  std::shared_ptr<comm::Work> work;
  ZBCCL_RETURN_IF_ERROR(start(comm, std::move(task), call, &work));
  *call->work = capi::Shells<zbcclWork>::make(std::move(work));
  return {};
}

// Whether a call is on memory of the communicator's GPU. A rank without arrays says so by a stream.
bool is_on_device(zbcclComm_t comm, const comm::Task& task, const zbcclCall_t* call) {
  if (comm->object->device() < 0) return false;
  if (call != nullptr && call->stream != nullptr) return true;
  return std::any_of(task.memory.begin(), task.memory.end(),
                     [](const void* array) { return memory::device_of(array) >= 0; });
}

// The work of the call whose receive phase is next; null on the device.
Status take_begun(capi::HandleObject& object, Operation operation,
                  std::shared_ptr<comm::Work>* work) {
  if (object.begun.empty() || object.begun.front().operation != operation) {
    return error(Code::kInvalidUsage, "{}: the receive phase of {} on this handle",
                 operation_name(operation),
                 object.begun.empty()
                     ? "a call whose send phase was not made"
                     : "one call comes before that of another, which was sent earlier");
  }
  *work = object.begun.front().work;
  object.begun.pop_front();
  return {};
}

// A dispatch or combine, whole or one phase of it.
Status make_phase(zbcclMoeHandle_t handle, int32_t phase, comm::Task task,
                  const zbcclCall_t* call) {
  capi::HandleObject& object = *handle->object;
  zbcclComm* const comm = object.moe->object->comm;
  if (phase == zbcclMoeBothPhases) return make(comm, std::move(task), call);
  if (call != nullptr && call->work != nullptr) {
    return error(
        Code::kInvalidArgument,
        "{}: `work` goes with both phases at once; a send phase returns at once without it",
        operation_name(task.operation));
  }
  const Operation operation = task.operation;
  const bool on_device = task.on_device;
  std::shared_ptr<comm::Work> work;
  if (phase == zbcclMoeReceivePhase) {
    ZBCCL_RETURN_IF_ERROR(take_begun(object, operation, &work));
    // On the device the phase is something to enqueue.
    return on_device ? start(comm, std::move(task), call, nullptr) : work->wait(Milliseconds(0));
  }
  ZBCCL_RETURN_IF_ERROR(start(comm, std::move(task), call, on_device ? nullptr : &work));
  object.begun.push_back({operation, std::move(work)});
  return {};
}

Status check_phase(int32_t phase) {
  if (phase >= zbcclMoeBothPhases && phase <= zbcclMoeReceivePhase) return {};
  return error(Code::kInvalidArgument, "{} is not a zbcclMoePhase_t", phase);
}

Status create(zbcclMoe_t* moe, zbcclComm_t comm, const zbcclMoeConfig_t* config,
              const zbcclCall_t* call) {
  ZBCCL_RETURN_IF_ERROR(check_call(call));
  ZBCCL_RETURN_IF_ERROR(check_handle(comm));
  if (call != nullptr && call->work != nullptr) {
    return error(Code::kInvalidArgument, "zbcclMoeCreate blocks; leave `work` NULL");
  }
  zbcclMoeConfig_t copy = ZBCCL_MOE_CONFIG_INITIALIZER;
  Status local = check_pointer(moe, "moe");
  if (local.ok()) local = take(config, "zbcclMoeConfig_t", &copy);
  auto object = std::make_shared<capi::MoeObject>();
  comm::Task task;
  task.operation = Operation::kMoeCreate;
  task.body = [&](collectives::Context& context) -> Status {
    auto made = moe::Moe::create(context, copy, local, timeout_of(call));
    if (!made.ok()) return made.status();
    object->moe = std::move(*made);
    return {};
  };
  ZBCCL_RETURN_IF_ERROR(start(comm, std::move(task), call, nullptr));
  object->comm = comm;
  object->comm_generation = comm->generation;
  *moe = capi::Shells<zbcclMoe>::make(std::move(object));
  return {};
}

Status route(zbcclMoe_t moe, const zbcclMoeRouting_t* routing, zbcclMoeHandle_t* handle,
             const zbcclCall_t* call) {
  ZBCCL_RETURN_IF_ERROR(check_call(call));
  ZBCCL_RETURN_IF_ERROR(check_moe(moe));
  zbcclMoeRouting_t copy = ZBCCL_MOE_ROUTING_INITIALIZER;
  Status local = check_pointer(handle, "handle");
  if (local.ok()) local = take(routing, "zbcclMoeRouting_t", &copy);
  const std::shared_ptr<moe::Moe> engine = moe->object->moe;
  auto made = std::make_shared<moe::Handle>(engine);
  comm::Task task;
  task.operation = Operation::kMoeRoute;
  task.memory = {copy.topk_idx, copy.recv_counts, copy.recv_status, copy.recv_ranges};
  task.body = [engine, copy, made, local = std::make_shared<Status>(local),
               timeout = timeout_of(call)](collectives::Context& context) {
    return engine->route(context, copy, *made, *local, timeout);
  };
  task.on_device = is_on_device(moe->object->comm, task, call);
  if (task.on_device) made->set_on_device();
  auto object = std::make_shared<capi::HandleObject>();
  if (copy.with_dispatch != 0) object->later = task.memory;
  ZBCCL_RETURN_IF_ERROR(make(moe->object->comm, std::move(task), call));
  if (handle == nullptr) return local;
  object->handle = std::move(made);
  object->moe = moe;
  object->moe_generation = moe->generation;
  *handle = capi::Shells<zbcclMoeHandle>::make(std::move(object));
  return {};
}

Status dispatch(zbcclMoeHandle_t handle, const zbcclMoeDispatch_t* given, const zbcclCall_t* call) {
  ZBCCL_RETURN_IF_ERROR(check_call(call));
  ZBCCL_RETURN_IF_ERROR(check_moe_handle(handle));
  zbcclMoeDispatch_t copy = ZBCCL_MOE_DISPATCH_INITIALIZER;
  Status local = take(given, "zbcclMoeDispatch_t", &copy);
  if (local.ok()) local = check_phase(copy.phase);
  if (!local.ok()) copy.phase = zbcclMoeBothPhases;
  const std::shared_ptr<moe::Handle> routed = handle->object->handle;
  comm::Task task;
  task.operation = Operation::kMoeDispatch;
  task.on_device = routed->on_device();
  task.memory = {copy.x,
                 copy.x_scales,
                 copy.recv_x,
                 copy.recv_scales,
                 copy.topk_weights,
                 copy.recv_topk_idx,
                 copy.recv_src_idx,
                 copy.recv_topk_weights,
                 copy.recv_row_weights};
  std::vector<const void*>& later = handle->object->later;
  task.memory.insert(task.memory.end(), later.begin(), later.end());
  later.clear();
  task.body = [routed, copy, local = std::make_shared<Status>(local),
               timeout = timeout_of(call)](collectives::Context& context) {
    return routed->moe->dispatch(context, copy, *routed, *local, timeout);
  };
  return make_phase(handle, copy.phase, std::move(task), call);
}

Status combine(zbcclMoeHandle_t handle, const zbcclMoeCombine_t* given, const zbcclCall_t* call) {
  ZBCCL_RETURN_IF_ERROR(check_call(call));
  ZBCCL_RETURN_IF_ERROR(check_moe_handle(handle));
  zbcclMoeCombine_t copy = ZBCCL_MOE_COMBINE_INITIALIZER;
  Status local = take(given, "zbcclMoeCombine_t", &copy);
  if (local.ok()) local = check_phase(copy.phase);
  if (!local.ok()) copy.phase = zbcclMoeBothPhases;
  const std::shared_ptr<moe::Handle> routed = handle->object->handle;
  comm::Task task;
  task.operation = Operation::kMoeCombine;
  task.on_device = routed->on_device();
  task.memory = {copy.y,
                 copy.topk_weights,
                 copy.bias[0],
                 copy.bias[1],
                 copy.out,
                 copy.recv_topk_weights,
                 copy.combined_topk_weights};
  task.body = [routed, copy, local = std::make_shared<Status>(local),
               timeout = timeout_of(call)](collectives::Context& context) {
    return routed->moe->combine(context, copy, *routed, *local, timeout);
  };
  return make_phase(handle, copy.phase, std::move(task), call);
}

}  // namespace

extern "C" {

zbcclResult_t zbcclMoeCreate(zbcclMoe_t* moe, zbcclComm_t comm, const zbcclMoeConfig_t* config,
                             const zbcclCall_t* call) {
  return guard([&] { return create(moe, comm, config, call); });
}

zbcclResult_t zbcclMoeDestroy(zbcclMoe_t moe) {
  return guard([&]() -> Status {
    if (moe == nullptr) return {};
    ZBCCL_RETURN_IF_ERROR(check_handle(moe));
    (void)capi::Shells<zbcclMoe>::take(moe);
    return {};
  });
}

zbcclResult_t zbcclMoeGetLocalExperts(zbcclMoe_t moe, int32_t* count, const int32_t** experts) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(moe));
    ZBCCL_RETURN_IF_ERROR(check_pointer(count, "count"));
    ZBCCL_RETURN_IF_ERROR(check_pointer(experts, "experts"));
    const moe::Moe& engine = *moe->object->moe;
    const auto mine = engine.map().experts_of(engine.rank());
    *count = static_cast<int32_t>(mine.size());
    *experts = mine.data();
    return {};
  });
}

zbcclResult_t zbcclMoeSetMask(zbcclMoe_t moe, int rank, int masked) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(moe));
    return moe->object->moe->set_mask(rank, masked != 0);
  });
}

zbcclResult_t zbcclMoeGetMask(zbcclMoe_t moe, int32_t* masked) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(moe));
    ZBCCL_RETURN_IF_ERROR(check_pointer(masked, "masked"));
    for (const uint8_t one : moe->object->moe->mask()) *masked++ = one;
    return {};
  });
}

zbcclResult_t zbcclMoeRoute(zbcclMoe_t moe, const zbcclMoeRouting_t* routing,
                            zbcclMoeHandle_t* handle, const zbcclCall_t* call) {
  return guard([&] { return route(moe, routing, handle, call); });
}

zbcclResult_t zbcclMoeHandleDestroy(zbcclMoeHandle_t handle) {
  return guard([&]() -> Status {
    if (handle == nullptr) return {};
    ZBCCL_RETURN_IF_ERROR(check_handle(handle));
    (void)capi::Shells<zbcclMoeHandle>::take(handle);
    return {};
  });
}

zbcclResult_t zbcclMoeHandleGetInfo(zbcclMoeHandle_t handle, zbcclMoeInfo_t* info) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(handle));
    ZBCCL_RETURN_IF_ERROR(check_pointer(info, "info"));
    ZBCCL_RETURN_IF_ERROR(capi::check_size(info->size, sizeof *info, "zbcclMoeInfo_t"));
    moe::Handle& routed = *handle->object->handle;
    if (routed.on_device()) {
      ZBCCL_RETURN_IF_ERROR(check_moe_handle(handle));
      ZBCCL_RETURN_IF_ERROR(routed.settle());
    }
    ZBCCL_RETURN_IF_ERROR(routed.check_ready());
    routed.fill(info);
    return {};
  });
}

zbcclResult_t zbcclMoeDispatch(zbcclMoeHandle_t handle, const zbcclMoeDispatch_t* dispatch_args,
                               const zbcclCall_t* call) {
  return guard([&] { return dispatch(handle, dispatch_args, call); });
}

zbcclResult_t zbcclMoeCombine(zbcclMoeHandle_t handle, const zbcclMoeCombine_t* combine_args,
                              const zbcclCall_t* call) {
  return guard([&] { return combine(handle, combine_args, call); });
}

zbcclResult_t zbcclMoeGetReport(zbcclMoe_t moe, zbcclMoeReport_t* report) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(moe));
    ZBCCL_RETURN_IF_ERROR(check_pointer(report, "report"));
    ZBCCL_RETURN_IF_ERROR(capi::check_size(report->size, sizeof *report, "zbcclMoeReport_t"));
    moe->object->moe->fill(report);
    return {};
  });
}

}  // extern "C"
