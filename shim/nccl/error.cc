#include "error.h"

#include <mutex>

#include "define.h"

namespace zbccl::nccl {
namespace {

// Of the process and not of the thread: watchdogs ask for what another thread has met.
struct LastError {
  std::mutex mutex;
  std::string message;
};

LastError& last_error() {
  static LastError* const last = new LastError;  // asked for until the process ends
  return *last;
}

}  // namespace

ncclResult_t keep(ncclResult_t code, std::string message) {
  LastError& last = last_error();
  const std::lock_guard lock(last.mutex);
  last.message = std::move(message);
  return code;
}

ncclResult_t code_of(zbcclResult_t result) {
  switch (result) {
    case zbcclSuccess: return ncclSuccess;
    case zbcclInvalidArgument: return ncclInvalidArgument;
    case zbcclInvalidUsage:
    case zbcclRevoked:
    case zbcclUnsupported:
    case zbcclVersionMismatch: return ncclInvalidUsage;
    case zbcclSystemError:
    case zbcclOutOfMemory: return ncclSystemError;
    case zbcclCudaError: return ncclUnhandledCudaError;
    case zbcclNetworkError:
    case zbcclTimeout:
    case zbcclRemoteFailed:
    case zbcclAborted: return ncclRemoteError;
    default: return ncclInternalError;
  }
}

ncclResult_t result_of(zbcclResult_t result) {
  if (result == zbcclSuccess) [[likely]] {
    return ncclSuccess;
  }
  return keep(code_of(result), zbcclGetLastError());
}

}  // namespace zbccl::nccl

ZBCCL_NCCL_DEFINE(const char*, ncclGetErrorString, (ncclResult_t result)) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "the CUDA driver or runtime refused something";
    case ncclSystemError: return "the operating system refused something";
    case ncclInternalError: return "a defect in zbccl";
    case ncclInvalidArgument: return "an argument is wrong by itself";
    case ncclInvalidUsage: return "the call does not fit the state or the other ranks' calls";
    case ncclRemoteError: return "another rank or the way to it failed";
    case ncclInProgress: return "the operation goes on";
    default: return "unknown result code";
  }
}

// Valid until this thread asks again.
ZBCCL_NCCL_DEFINE(const char*, ncclGetLastError, (ncclComm_t /*comm*/)) {
  thread_local std::string copy;
  try {
    zbccl::nccl::LastError& last = zbccl::nccl::last_error();
    const std::lock_guard lock(last.mutex);
    copy = last.message;
  } catch (const std::bad_alloc&) {
    return "";
  }
  return copy.c_str();
}

// zbccl reads its variables when they are needed.
ZBCCL_NCCL_DEFINE(void, ncclResetDebugInit, ()) {}
extern "C" ZBCCL_NCCL_EXPORT void ncclResetDebugInitInternal() {}
