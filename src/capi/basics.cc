// Version, names, errors, environment.
#include <zbccl/zbccl.h>

#include <cstring>
#include <string>

#include "base/env.h"
#include "base/types.h"
#include "capi/guard.h"
#include "capi/handles.h"

namespace zbccl::capi {
namespace {

thread_local std::string last_error;

}  // namespace

zbcclResult_t report(const Status& status) {
  try {
    last_error = status.message();
  } catch (const std::bad_alloc&) {
    last_error.clear();
  }
  return static_cast<zbcclResult_t>(status.code());
}

}  // namespace zbccl::capi

static_assert(static_cast<int>(zbcclNumResults) == zbccl::kNumCodes);
static_assert(static_cast<int>(zbcclNumTypes) == zbccl::kNumDataTypes);
static_assert(static_cast<int>(zbcclNumOps) == zbccl::kNumRedOps);

extern "C" {

const char* zbcclGetErrorString(zbcclResult_t result) {
  return zbccl::code_text(static_cast<zbccl::Code>(result));
}

const char* zbcclGetLastError(void) { return zbccl::capi::last_error.c_str(); }

zbcclResult_t zbcclGetVersion(int* version) {
  return zbccl::capi::guard([&] {
    ZBCCL_RETURN_IF_ERROR(zbccl::capi::check_pointer(version, "version"));
    *version = ZBCCL_VERSION_CODE;
    return zbccl::Status();
  });
}

size_t zbcclTypeSize(zbcclDataType_t type) {
  return static_cast<unsigned>(type) < zbccl::kNumDataTypes
             ? zbccl::type_size(static_cast<zbccl::DataType>(type))
             : 0;
}

const char* zbcclTypeName(zbcclDataType_t type) {
  return static_cast<unsigned>(type) < zbccl::kNumDataTypes
             ? zbccl::type_name(static_cast<zbccl::DataType>(type))
             : "unknown";
}

const char* zbcclOpName(zbcclRedOp_t op) {
  return static_cast<unsigned>(op) < zbccl::kNumRedOps
             ? zbccl::op_name(static_cast<zbccl::RedOp>(op))
             : "unknown";
}

zbcclResult_t zbcclGetEnvironment(char* buffer, size_t* size) {
  return zbccl::capi::guard([&]() -> zbccl::Status {
    ZBCCL_RETURN_IF_ERROR(zbccl::capi::check_pointer(size, "size"));
    const std::string text = zbccl::env::to_json();
    const size_t room = *size;
    *size = text.size() + 1;
    if (buffer == nullptr) return {};
    if (room < text.size() + 1) {
      return zbccl::error(zbccl::Code::kInvalidArgument, "the buffer has {} bytes, {} are needed",
                          room, text.size() + 1);
    }
    std::memcpy(buffer, text.c_str(), text.size() + 1);
    return {};
  });
}

}  // extern "C"
