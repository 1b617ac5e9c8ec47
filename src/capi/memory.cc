// Registered memory and the report on it.
#include <zbccl/zbccl.h>

#include <algorithm>

#include "capi/guard.h"
#include "capi/handles.h"
#include "memory/device_memory.h"
#include "memory/pool.h"
#include "observe/counters.h"

using namespace zbccl;

extern "C" {

zbcclResult_t zbcclMemAlloc(void** ptr, size_t size) {
  return capi::guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(capi::check_pointer(ptr, "ptr"));
    ZBCCL_ASSIGN_OR_RETURN(*ptr, memory::Pool::process().allocate(size, memory::Use::kUser));
    return {};
  });
}

zbcclResult_t zbcclMemFree(void* ptr) {
  return capi::guard([&]() -> Status {
    if (ptr == nullptr) return {};
    return memory::device_of(ptr) >= 0 ? memory::free_on_device(ptr)
                                       : memory::Pool::process().free(ptr);
  });
}

zbcclResult_t zbcclMemAllocDevice(void** ptr, size_t size, int device) {
  return capi::guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(capi::check_pointer(ptr, "ptr"));
    ZBCCL_ASSIGN_OR_RETURN(*ptr, memory::allocate_on_device(size, device));
    return {};
  });
}

zbcclResult_t zbcclMemRegister(const void* ptr, size_t size) {
  return capi::guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(capi::check_pointer(ptr, "ptr"));
    return memory::register_device_memory(ptr, size);
  });
}

zbcclResult_t zbcclMemDeregister(const void* ptr) {
  return capi::guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(capi::check_pointer(ptr, "ptr"));
    return memory::deregister_device_memory(ptr);
  });
}

zbcclResult_t zbcclMemGetReport(zbcclMemReport_t* report) {
  return capi::guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(capi::check_pointer(report, "report"));
    ZBCCL_RETURN_IF_ERROR(capi::check_size(report->size, sizeof *report, "zbcclMemReport_t"));
    const memory::PoolReport pool = memory::Pool::process().report();
    const observe::Totals traffic = observe::process_totals();
    const auto used = [&](memory::Use use) { return pool.used[static_cast<size_t>(use)]; };
    report->staged_bytes = traffic.staged;
    report->landing_bytes = traffic.landing;
    report->metadata_bytes = used(memory::Use::kMetadata);
    report->user_bytes = used(memory::Use::kUser);
    // Outboxes take memory as they are touched, so no more is held than is resident.
    report->held_bytes =
        std::min(pool.resident, used(memory::Use::kMetadata) + used(memory::Use::kScratch) +
                                    used(memory::Use::kStaging) + pool.free);
    report->reserved_bytes = pool.reserved;
    report->direct_calls = traffic.direct_calls;
    report->staged_calls = traffic.staged_calls;
    report->attached_bytes = traffic.attached;
    const memory::DeviceTotals device = memory::device_totals();
    report->device_user_bytes = device.user;
    report->device_held_bytes = device.held;
    report->device_reserved_bytes = device.reserved;
    return {};
  });
}

}  // extern "C"
