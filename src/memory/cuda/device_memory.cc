#include "memory/device_memory.h"

#include <dlfcn.h>

#include <atomic>

#include "base/env.h"
#include "memory/cuda/deferred_frees.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/driver.h"

namespace zbccl::memory {
namespace {

using cuda::DevicePool;

// How long an allocation that finds the GPU full waits for streams that use freed memory.
constexpr auto kReclaimTime = Milliseconds(10'000);

// The pool that knows the address, its own or registered; null if none does.
DevicePool* pool_around(const void* address, bool* own) {
  if (device_imports() == nullptr) return nullptr;  // no GPU in use, or in a fork of such a process
  for (int device = 0; device < static_cast<int>(kMaxDevices); ++device) {
    DevicePool* const pool = DevicePool::opened(device);
    if (pool == nullptr) continue;
    const auto at = pool->locate(address, 0);
    if (!at) continue;
    *own = at->segment == 0;
    return pool;
  }
  return nullptr;
}

bool is_only_pool(const DevicePool& pool) {
  for (int device = 0; device < static_cast<int>(kMaxDevices); ++device) {
    const DevicePool* const other = DevicePool::opened(device);
    if (other != nullptr && other != &pool) return false;
  }
  return true;
}

// The pool whose own memory it is.
DevicePool* pool_of(const void* address) {
  bool own = false;
  DevicePool* const pool = pool_around(address, &own);
  return own ? pool : nullptr;
}

}  // namespace

Result<void*> allocate_on_device(size_t bytes, int device) {
  ZBCCL_ASSIGN_OR_RETURN(DevicePool* const pool, DevicePool::of(device));
  cuda::DeferredFrees& frees = cuda::DeferredFrees::of(*pool);
  (void)frees.reclaim();
  auto block = pool->allocate(bytes, Use::kUser);
  if (block.ok() || block.status().code() != Code::kOutOfMemory) return block;
  // What streams still use may be all that is missing.
  return frees.wait(Deadline::after(kReclaimTime)) ? pool->allocate(bytes, Use::kUser) : block;
}

Status free_on_device(void* block) {
  if (DevicePool* const pool = pool_of(block)) return pool->free(block);
  return error(Code::kInvalidArgument, "{} is not a block of any GPU's pool", block);
}

Status free_on_device_after(void* block, void* stream) {
  DevicePool* const pool = pool_of(block);
  if (pool == nullptr) return free_on_device(block);
  return cuda::DeferredFrees::of(*pool).free_after(block, static_cast<CUstream>(stream));
}

Status register_device_memory(const void* address, size_t bytes) {
  ZBCCL_RETURN_IF_ERROR(cuda::ensure_driver());
  const int device = device_of(address);
  if (device < 0) {
    return error(Code::kInvalidArgument,
                 "{} is not memory of a GPU; host memory that peers reach comes from zbcclMemAlloc",
                 address);
  }
  ZBCCL_ASSIGN_OR_RETURN(DevicePool* const pool, DevicePool::of(device));
  return pool->add_foreign(address, bytes);
}

Status deregister_device_memory(const void* address) {
  // By what is registered and not by the address, whose memory may be gone.
  Status status = error(Code::kInvalidArgument, "{} is not registered", address);
  if (device_imports() == nullptr) return status;
  const Deadline deadline = Deadline::after(Milliseconds(env::get_integer("ZBCCL_TIMEOUT")));
  for (int device = 0; device < static_cast<int>(kMaxDevices); ++device) {
    DevicePool* const pool = DevicePool::opened(device);
    if (pool == nullptr || !pool->registered(address)) continue;
    return pool->remove_foreign(address, deadline);
  }
  return status;
}

int device_of(const void* address) {
  bool own = false;
  const DevicePool* const pool = pool_around(address, &own);
  // What was registered may have been freed since, and be another GPU's by now.
  if (pool != nullptr && (own || is_only_pool(*pool))) return pool->device();
  return cuda::device_of_address(address);
}

int current_device() { return cuda::current_device(); }

DeviceTotals device_totals() {
  const cuda::DeviceReport report = DevicePool::total_report();
  DeviceTotals totals;
  totals.user = report.used[static_cast<size_t>(Use::kUser)];
  totals.held = report.held;
  totals.reserved = report.reserved;
  return totals;
}

}  // namespace zbccl::memory
