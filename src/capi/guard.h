// What every function of the C boundary does: no exception leaves it, and the message of an error
// is kept for the thread.
#pragma once

#include <zbccl/zbccl.h>

#include <exception>
#include <new>

#include "base/status.h"

namespace zbccl::capi {

// Keeps the message for zbcclGetLastError and returns the code.
zbcclResult_t report(const Status& status);

template <typename Body>
zbcclResult_t guard(Body&& body) {
  try {
    const Status status = body();
    if (status.ok()) [[likely]] {
      return zbcclSuccess;
    }
    return report(status);
  } catch (const std::bad_alloc&) {
    return report(error(Code::kOutOfMemory, "the process's memory is exhausted"));
  } catch (const std::exception& failure) {
    return report(error(Code::kInternal, "an exception inside zbccl: {}", failure.what()));
  }
}

}  // namespace zbccl::capi
