// The CUDA driver as a table of functions found at run time, so that the library loads where there
// is no driver. Any thread.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <source_location>
#include <string_view>

#include "base/status.h"
#include "memory/cuda/probe.h"

// X(member, function): what the memory of the CUDA device is built on.
#define ZBCCL_DRIVER_FUNCTIONS(X)                                          \
  X(init, cuInit)                                                          \
  X(get_error_name, cuGetErrorName)                                        \
  X(get_error_string, cuGetErrorString)                                    \
  X(device_get, cuDeviceGet)                                               \
  X(device_get_count, cuDeviceGetCount)                                    \
  X(device_get_attribute, cuDeviceGetAttribute)                            \
  X(device_get_uuid, cuDeviceGetUuid)                                      \
  X(device_total_mem, cuDeviceTotalMem)                                    \
  X(device_can_access_peer, cuDeviceCanAccessPeer)                         \
  X(device_primary_ctx_retain, cuDevicePrimaryCtxRetain)                   \
  X(ctx_get_device, cuCtxGetDevice)                                        \
  X(ctx_push_current, cuCtxPushCurrent)                                    \
  X(ctx_pop_current, cuCtxPopCurrent)                                      \
  X(ctx_enable_peer_access, cuCtxEnablePeerAccess)                         \
  X(ctx_get_stream_priority_range, cuCtxGetStreamPriorityRange)            \
  X(thread_exchange_capture_mode, cuThreadExchangeStreamCaptureMode)       \
  X(stream_create_with_priority, cuStreamCreateWithPriority)               \
  X(stream_is_capturing, cuStreamIsCapturing)                              \
  X(event_create, cuEventCreate)                                           \
  X(event_record, cuEventRecord)                                           \
  X(event_query, cuEventQuery)                                             \
  X(mem_host_alloc, cuMemHostAlloc)                                        \
  X(memcpy_htod_async, cuMemcpyHtoDAsync)                                  \
  X(memcpy_dtoh_async, cuMemcpyDtoHAsync)                                  \
  X(mem_get_allocation_granularity, cuMemGetAllocationGranularity)         \
  X(mem_address_reserve, cuMemAddressReserve)                              \
  X(mem_address_free, cuMemAddressFree)                                    \
  X(mem_create, cuMemCreate)                                               \
  X(mem_release, cuMemRelease)                                             \
  X(mem_map, cuMemMap)                                                     \
  X(mem_unmap, cuMemUnmap)                                                 \
  X(mem_set_access, cuMemSetAccess)                                        \
  X(mem_export_to_shareable_handle, cuMemExportToShareableHandle)          \
  X(mem_import_from_shareable_handle, cuMemImportFromShareableHandle)      \
  X(mem_retain_allocation_handle, cuMemRetainAllocationHandle)             \
  X(mem_get_allocation_properties, cuMemGetAllocationPropertiesFromHandle) \
  X(mem_get_address_range, cuMemGetAddressRange)                           \
  X(pointer_get_attribute, cuPointerGetAttribute)                          \
  X(ipc_get_mem_handle, cuIpcGetMemHandle)                                 \
  X(ipc_open_mem_handle, cuIpcOpenMemHandle)                               \
  X(ipc_close_mem_handle, cuIpcCloseMemHandle)

namespace zbccl::cuda {

struct Driver {
  decltype(&cuda::load_probe) load_probe = nullptr;  // the one kernel
  decltype(&cuda::launch_probe) launch_probe = nullptr;
#define ZBCCL_DRIVER_MEMBER(member, function) decltype(&::function) member = nullptr;
  ZBCCL_DRIVER_FUNCTIONS(ZBCCL_DRIVER_MEMBER)
#undef ZBCCL_DRIVER_MEMBER
};

// The initialised driver: loaded by the first call, which is never made for a process that uses no
// GPU. kUnsupported where there is no driver or no GPU; kInvalidUsage in a child of fork() whose
// parent used one.
Result<const Driver*> driver();
// The same without the table.
Status ensure_driver();
// Takes `table` for the driver from now on; for tests, before anything else is used.
void replace_driver(const Driver* table);

// kCuda (kOutOfMemory where that is what it says): "what: NAME (number): text".
Status cuda_error(CUresult result, std::string_view what,
                  std::source_location where = std::source_location::current());
Status cuda_error(cudaError_t result, std::string_view what,
                  std::source_location where = std::source_location::current());

// Ordinal of the GPU whose context is current on the calling thread; -1 if there is none. Neither
// loads nor initialises the driver.
int current_device();
// Ordinal of the GPU that the address belongs to; -1 for host memory, for what no driver knows, and
// in a process whose driver neither this library nor current_device() has met.
int device_of_address(const void* address);

// Makes the GPU's primary context current for its life and then what was current before. The first
// guard of a GPU in a process creates the context.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  const Status& status() const { return status_; }

 private:
  Status status_;
  const Driver* driver_ = nullptr;  // null: nothing to pop
};

// The GPU's primary context, kept for the life of the process.
Result<CUcontext> primary_context(int device);

// Lets the calling thread allocate, map and ask after events while any thread captures a graph.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const Driver& driver) : driver_(driver) {
    driver_.thread_exchange_capture_mode(&mode_);
  }
  ~RelaxedCapture() { driver_.thread_exchange_capture_mode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const Driver& driver_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

}  // namespace zbccl::cuda

// For both kinds of result: returns cuda_error(result, what) unless the call succeeded.
#define ZBCCL_RETURN_IF_CUDA_ERROR(call, what)                         \
  do {                                                                 \
    if (const auto result_ = (call); static_cast<int>(result_) != 0) { \
      return ::zbccl::cuda::cuda_error(result_, what);                 \
    }                                                                  \
  } while (false)
