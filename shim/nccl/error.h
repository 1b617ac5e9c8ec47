// Results of the interface, and the message behind the last one that was an error.
#pragma once

#include <fmt/core.h>
#include <zbccl/zbccl.h>

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "types.h"

#define ZBCCL_NCCL_TRY(expression)                                               \
  do {                                                                           \
    if (const ncclResult_t try_result = (expression); try_result != ncclSuccess) \
      return try_result;                                                         \
  } while (false)

namespace zbccl::nccl {

// Keeps `message` for ncclGetLastError and returns `code`. Any thread.
ncclResult_t keep(ncclResult_t code, std::string message);

template <typename... Arguments>
ncclResult_t fail(ncclResult_t code, fmt::format_string<Arguments...> format,
                  Arguments&&... arguments) {
  return keep(code, fmt::format(format, std::forward<Arguments>(arguments)...));
}

// The code that NCCL's users know for one of zbccl's.
ncclResult_t code_of(zbcclResult_t result);
// The same, with the message that zbccl has for this thread.
ncclResult_t result_of(zbcclResult_t result);

template <typename Body>
ncclResult_t guard(Body&& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(ncclSystemError, "the process's memory is exhausted");
  } catch (const std::exception& failure) {
    return fail(ncclInternalError, "an exception inside zbccl: {}", failure.what());
  }
}

}  // namespace zbccl::nccl
