// Memory that peers read and write in place, windows, and the version.
#include <zbccl/zbccl.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "communicator.h"
#include "define.h"
#include "driver.h"
#include "forward.h"
#include "group.h"

namespace zbccl::nccl {
namespace {

ncclResult_t allocate(void** ptr, size_t size) {
  ZBCCL_NCCL_TRY(check_pointer(ptr, "ptr"));
  const int device = driver::current_device();
  return result_of(device >= 0 ? zbcclMemAllocDevice(ptr, size, device) : zbcclMemAlloc(ptr, size));
}

// Host memory needs no registration, and memory that the driver cannot share is staged: both are
// what a caller of NCCL gets without asking.
ncclResult_t enter(ncclComm* comm, void* buffer, size_t size, Registration** made) {
  ZBCCL_NCCL_TRY(check_usable(comm));
  ZBCCL_NCCL_TRY(check_pointer(buffer, "buff"));
  auto entry = std::make_unique<Registration>();
  entry->address = buffer;
  if (driver::is_device_memory(buffer)) {
    const zbcclResult_t result = zbcclMemRegister(buffer, size);
    if (result != zbcclSuccess && result != zbcclUnsupported) return result_of(result);
    entry->registered = result == zbcclSuccess;
  }
  const std::lock_guard lock(comm->registering);
  *made = entry.get();
  comm->registrations.push_back(std::move(entry));
  return ncclSuccess;
}

// The entry for which `is_it` holds, taken out of the communicator's.
template <typename Predicate>
std::unique_ptr<Registration> take(ncclComm* comm, Predicate&& is_it) {
  const std::lock_guard lock(comm->registering);
  auto& all = comm->registrations;
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const auto& entry) { return is_it(*entry); });
  if (found == all.end()) return nullptr;
  auto entry = std::move(*found);
  all.erase(found);
  return entry;
}

ncclResult_t deregister(ncclComm* comm, const void* handle) {
  ZBCCL_NCCL_TRY(check_handle(comm));
  const auto entry = take(comm, [&](const Registration& it) { return &it == handle; });
  if (entry == nullptr) {
    return fail(ncclInvalidArgument, "{} is no registration of this communicator", handle);
  }
  return entry->registered ? result_of(zbcclMemDeregister(entry->address)) : ncclSuccess;
}

// Kernels of the interface for kernels read what a window points to, which must then be the other
// library's. Where it was named, windows are made there too.
ncclResult_t register_window(ncclComm* comm, void* buffer, size_t size, ncclWindow_t* window,
                             int flags) {
  ZBCCL_NCCL_TRY(check_pointer(window, "win"));
  if (flags != NCCL_WIN_DEFAULT && flags != NCCL_WIN_COLL_SYMMETRIC) {
    return fail(ncclInvalidArgument, "the flags of a window are {}, expected 0 or 1", flags);
  }
  Registration* entry = nullptr;
  ZBCCL_NCCL_TRY(enter(comm, buffer, size, &entry));
  *window = reinterpret_cast<ncclWindow_t>(entry);
  if (comm->device < 0 || !real_is_named()) return ncclSuccess;
  return run_or_defer([=]() -> ncclResult_t {
    const Real* real = nullptr;
    ZBCCL_NCCL_TRY(need_shadow(comm, "ncclCommWindowRegister", &real));
    if (real->ncclCommWindowRegister == nullptr) return ncclSuccess;
    const driver::Current current(comm->device);
    ncclWindow_t theirs = nullptr;
    ZBCCL_NCCL_TRY(real->ncclCommWindowRegister(comm->shadow, buffer, size, &theirs, flags));
    if (theirs != nullptr) *window = entry->forwarded = theirs;
    return ncclSuccess;
  });
}

ncclResult_t deregister_window(ncclComm* comm, ncclWindow_t window) {
  if (window == nullptr) return ncclSuccess;
  ZBCCL_NCCL_TRY(check_handle(comm));
  const auto entry = take(comm, [&](const Registration& it) {
    return it.forwarded == window ||
           reinterpret_cast<ncclWindow_t>(const_cast<Registration*>(&it)) == window;
  });
  if (entry == nullptr) {
    return fail(ncclInvalidArgument, "{} is no window of this communicator",
                static_cast<const void*>(window));
  }
  const Real* real = nullptr;
  if (entry->forwarded != nullptr && find_real("a window", &real) == ncclSuccess) {
    ZBCCL_NCCL_TRY(real->ncclCommWindowDeregister(comm->shadow, entry->forwarded));
  }
  return entry->registered ? result_of(zbcclMemDeregister(entry->address)) : ncclSuccess;
}

ncclResult_t version(int* out) {
  ZBCCL_NCCL_TRY(check_pointer(out, "version"));
  static const int told = [] {
    const std::string text = variable("ZBCCL_NCCL_VERSION");
    int number = NCCL_VERSION_CODE;
    std::from_chars(text.data(), text.data() + text.size(), number);
    return number;
  }();
  *out = told;
  return ncclSuccess;
}

}  // namespace
}  // namespace zbccl::nccl

using zbccl::nccl::guard;

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclMemAlloc, (void** ptr, size_t size)) {
  return guard([&] { return zbccl::nccl::allocate(ptr, size); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclMemFree, (void* ptr)) {
  return guard([&] { return zbccl::nccl::result_of(zbcclMemFree(ptr)); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommRegister,
                  (ncclComm_t comm, void* buffer, size_t size, void** handle)) {
  return guard([&]() -> ncclResult_t {
    ZBCCL_NCCL_TRY(zbccl::nccl::check_pointer(handle, "handle"));
    zbccl::nccl::Registration* entry = nullptr;
    ZBCCL_NCCL_TRY(zbccl::nccl::enter(comm, buffer, size, &entry));
    *handle = entry;
    return ncclSuccess;
  });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommDeregister, (ncclComm_t comm, void* handle)) {
  return guard([&] { return zbccl::nccl::deregister(comm, handle); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommWindowRegister,
                  (ncclComm_t comm, void* buffer, size_t size, ncclWindow_t* window, int flags)) {
  return guard([&] { return zbccl::nccl::register_window(comm, buffer, size, window, flags); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommWindowDeregister, (ncclComm_t comm, ncclWindow_t window)) {
  return guard([&] { return zbccl::nccl::deregister_window(comm, window); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclGetVersion, (int* version)) {
  return guard([&] { return zbccl::nccl::version(version); });
}
