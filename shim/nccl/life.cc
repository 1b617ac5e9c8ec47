// What becomes of communicators, and what can be asked of them.
#include <zbccl/zbccl.h>

#include "communicator.h"
#include "define.h"
#include "job.h"

namespace zbccl::nccl {
namespace {

// Where a job is still at work on it.
void wait_for_job(ncclComm* comm) {
  if (const std::shared_ptr<Job> job = comm->job) job->wait();
}

ncclResult_t destroy(ncclComm* comm) {
  ZBCCL_NCCL_TRY(check_handle(comm));
  wait_for_job(comm);
  const ncclResult_t result = release(comm);
  retire(comm);
  return result;
}

ncclResult_t abort(ncclComm* comm) {
  ZBCCL_NCCL_TRY(check_handle(comm));
  const std::shared_ptr<Job> job = comm->job;
  // What is still being made comes to nothing, and nobody waits for that.
  const bool given_up = job != nullptr && job->give_up(comm);
  const ncclResult_t result = stop(comm);
  if (!given_up) wait_for_job(comm);  // a split of it ends with the abort
  const ncclResult_t released = release(comm);
  retire(comm);
  return result == ncclSuccess ? released : result;
}

ncclResult_t revoke(ncclComm* comm, int flags) {
  ZBCCL_NCCL_TRY(check_usable(comm));
  if (flags != NCCL_REVOKE_DEFAULT) {
    return fail(ncclInvalidArgument, "the flags of a revocation are {}, expected 0", flags);
  }
  const ncclResult_t result = stop(comm);
  comm->revoked.store(true);
  return result;
}

ncclResult_t async_error(ncclComm* comm, ncclResult_t* error) {
  ZBCCL_NCCL_TRY(check_handle(comm));
  ZBCCL_NCCL_TRY(check_pointer(error, "asyncError"));
  const InUse use(comm);
  *error = comm->state.load(std::memory_order_acquire);
  // A revocation is an error that its caller knows of.
  if (*error != ncclSuccess || comm->revoked.load() || use.check() != ncclSuccess ||
      comm->inner == nullptr) {
    return ncclSuccess;
  }
  zbcclResult_t state = zbcclSuccess;
  ZBCCL_NCCL_TRY(result_of(zbcclCommGetAsyncError(comm->inner, &state)));
  *error = code_of(state);
  if (state != zbcclSuccess) {
    keep(*error, fmt::format("rank {} of {} can go on no longer: {}", comm->rank, comm->nranks,
                             zbcclGetErrorString(state)));
  }
  return ncclSuccess;
}

ncclResult_t answer(const ncclComm* comm, int* out, const char* name, int ncclComm::*field) {
  ZBCCL_NCCL_TRY(check_settled(comm));
  ZBCCL_NCCL_TRY(check_pointer(out, name));
  *out = comm->*field;
  return ncclSuccess;
}

}  // namespace
}  // namespace zbccl::nccl

using zbccl::nccl::guard;

// What this rank has enqueued is over, and what it held is given back; only the handle is left.
ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommFinalize, (ncclComm_t comm)) {
  return guard([&]() -> ncclResult_t {
    ZBCCL_NCCL_TRY(zbccl::nccl::check_usable(comm));
    return zbccl::nccl::release(comm);
  });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommDestroy, (ncclComm_t comm)) {
  if (comm == nullptr) return ncclSuccess;
  return guard([&] { return zbccl::nccl::destroy(comm); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommAbort, (ncclComm_t comm)) {
  if (comm == nullptr) return ncclSuccess;
  return guard([&] { return zbccl::nccl::abort(comm); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommRevoke, (ncclComm_t comm, int flags)) {
  return guard([&] { return zbccl::nccl::revoke(comm, flags); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommGetAsyncError, (ncclComm_t comm, ncclResult_t* error)) {
  return guard([&] { return zbccl::nccl::async_error(comm, error); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommCount, (ncclComm_t comm, int* count)) {
  return guard([&] { return zbccl::nccl::answer(comm, count, "count", &ncclComm::nranks); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommCuDevice, (ncclComm_t comm, int* device)) {
  return guard([&] { return zbccl::nccl::answer(comm, device, "device", &ncclComm::device); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommUserRank, (ncclComm_t comm, int* rank)) {
  return guard([&] { return zbccl::nccl::answer(comm, rank, "rank", &ncclComm::rank); });
}
