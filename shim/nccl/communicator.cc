#include "communicator.h"

#include <chrono>
#include <thread>
#include <utility>

#include "forward.h"

namespace zbccl::nccl {
namespace {

struct Shells {
  std::mutex mutex;
  std::vector<std::unique_ptr<ncclComm>> all;
  std::vector<ncclComm*> spare;
};

Shells& shells() {
  static Shells* const all = new Shells;  // handles may be destroyed while the process ends
  return *all;
}

}  // namespace

ncclComm* new_communicator() {
  Shells& all = shells();
  const std::lock_guard lock(all.mutex);
  if (all.spare.empty()) {
    all.all.push_back(std::make_unique<ncclComm>());
    all.spare.push_back(all.all.back().get());
  }
  ncclComm* const comm = all.spare.back();
  all.spare.pop_back();
  ++comm->generation;
  comm->state.store(ncclInProgress);
  comm->inner = nullptr;
  comm->rank = comm->nranks = 0;
  comm->device = -1;
  comm->settings = {};
  comm->identity = {};
  comm->splits = comm->shrinks = 0;
  comm->revoked.store(false);
  comm->aborted.store(false);
  comm->grouped = 0;
  comm->operators.clear();
  comm->shadow = nullptr;
  comm->alive.store(true);
  return comm;
}

void retire(ncclComm* comm) {
  Shells& all = shells();
  comm->job.reset();
  const std::lock_guard lock(all.mutex);
  comm->alive.store(false);
  all.spare.push_back(comm);
}

ncclResult_t check_handle(const ncclComm* comm) {
  if (comm == nullptr) return fail(ncclInvalidArgument, "the communicator is a null pointer");
  if (comm->alive.load(std::memory_order_acquire)) return ncclSuccess;
  return fail(ncclInvalidArgument, "the communicator was destroyed before this call");
}

ncclResult_t check_settled(const ncclComm* comm) {
  ZBCCL_NCCL_TRY(check_handle(comm));
  const ncclResult_t state = comm->state.load(std::memory_order_acquire);
  if (state == ncclSuccess) return ncclSuccess;
  if (state == ncclInProgress) {
    return fail(ncclInvalidArgument,
                "the communicator is still being made or split; ask ncclCommGetAsyncError until it "
                "is not in progress");
  }
  return fail(state, "the communicator could not be made; abort it");
}

ncclResult_t refuse_use(const ncclComm* comm) {
  ZBCCL_NCCL_TRY(check_settled(comm));
  if (comm->revoked.load()) {
    return fail(ncclInvalidUsage,
                "the communicator was revoked; destroy it, or make a new one with ncclCommShrink");
  }
  return fail(ncclInvalidUsage, "the communicator was finalized before this call");
}

ncclResult_t check_pointer(const void* pointer, const char* name) {
  if (pointer != nullptr) return ncclSuccess;
  return fail(ncclInvalidArgument, "`{}` is a null pointer", name);
}

ncclResult_t stop(ncclComm* comm) {
  comm->aborted.store(true);
  if (comm->inner == nullptr) return ncclSuccess;
  const ncclResult_t result = result_of(zbcclCommAbort(comm->inner));
  // They see the abort, in zbccl's waits or before they begin.
  while (comm->users.load() > 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
  return result;
}

ncclResult_t release(ncclComm* comm) {
  drop_shadow(comm);
  {
    const std::lock_guard lock(comm->registering);
    for (const auto& it : comm->registrations) {
      if (it->registered) zbcclMemDeregister(it->address);
    }
    comm->registrations.clear();
  }
  zbcclComm_t inner = comm->inner;
  comm->inner = nullptr;
  const ncclResult_t result =
      inner != nullptr ? result_of(zbcclCommDestroy(inner)) : ncclSuccess;  // waits
  for (void* const block : std::exchange(comm->kept, {})) zbcclMemFree(block);
  return result;
}

}  // namespace zbccl::nccl
