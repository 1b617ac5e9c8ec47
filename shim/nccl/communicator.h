// What stands behind an ncclComm_t: one rank of a zbccl communicator and its state.
#pragma once

#include <zbccl/zbccl.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "error.h"
#include "identity.h"
#include "operators.h"
#include "settings.h"
#include "types.h"

namespace zbccl::nccl {

class Job;

// Memory that was registered with the communicator; its address is the handle.
struct Registration {
  void* address = nullptr;
  bool registered = false;  // with zbccl; host memory needs none, and some memory cannot be shared
  ncclWindow_t forwarded = nullptr;  // of the real NCCL's window
};

}  // namespace zbccl::nccl

// Never freed but used again, so a handle that was destroyed is recognised. One thread at a time
// uses a communicator, except for abort and what asks for its state.
struct ncclComm {
  std::atomic<bool> alive{false};
  uint32_t generation = 0;
  // ncclInProgress while a job makes or splits it; an error where the job failed.
  std::atomic<ncclResult_t> state{ncclSuccess};
  zbcclComm_t inner = nullptr;  // null before it is made and once it is finalized
  int rank = 0;
  int nranks = 0;
  int device = -1;  // -1: host memory only
  zbccl::nccl::Settings settings;
  zbccl::nccl::Identity identity;
  uint64_t splits = 0;
  uint64_t shrinks = 0;
  std::atomic<bool> revoked{false};
  std::atomic<bool> aborted{false};
  // Threads inside a call; an abort waits until they have left.
  std::atomic<int> users{0};
  // Calls of the group that is open on the thread that uses it.
  uint32_t grouped = 0;
  std::shared_ptr<zbccl::nccl::Job> job;  // that makes or splits it
  std::vector<zbccl::nccl::Operator> operators;
  std::mutex registering;
  std::vector<std::unique_ptr<zbccl::nccl::Registration>> registrations;
  std::vector<void*> kept;      // memory of the pool that captured graphs use
  ncclComm_t shadow = nullptr;  // of the real NCCL, where something was forwarded
};

namespace zbccl::nccl {

ncclComm* new_communicator();
// The handle is stale from here on.
void retire(ncclComm* comm);

// That it is a live handle.
ncclResult_t check_handle(const ncclComm* comm);
// That it was made, and is not being made or split.
ncclResult_t check_settled(const ncclComm* comm);
ncclResult_t check_pointer(const void* pointer, const char* name);
// What check_usable() says where it is not.
ncclResult_t refuse_use(const ncclComm* comm);

// That operations can run on it.
inline ncclResult_t check_usable(const ncclComm* comm) {
  if (comm != nullptr && comm->inner != nullptr &&
      comm->state.load(std::memory_order_acquire) == ncclSuccess &&
      !comm->revoked.load(std::memory_order_relaxed)) [[likely]] {
    return ncclSuccess;
  }
  return refuse_use(comm);
}

// While it lives, an abort of another thread lets the communicator's parts stand.
class InUse {
 public:
  explicit InUse(ncclComm* comm) : comm_(comm) { comm_->users.fetch_add(1); }
  ~InUse() { comm_->users.fetch_sub(1, std::memory_order_release); }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;
  ncclResult_t check() const {
    if (!comm_->aborted.load()) [[likely]] {
      return ncclSuccess;
    }
    return fail(ncclInvalidUsage, "the communicator was aborted by another thread");
  }

 private:
  ncclComm* comm_;
};

// Ends every wait on it, here and on the other ranks, and returns when no thread is inside a call.
ncclResult_t stop(ncclComm* comm);
// Frees what lies behind the handle; waits for what this rank has enqueued.
ncclResult_t release(ncclComm* comm);

}  // namespace zbccl::nccl
