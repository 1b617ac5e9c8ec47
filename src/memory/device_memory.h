// Memory of GPUs as the layers above see it, the same in a build without CUDA, where every call is
// kUnsupported. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace zbccl::memory {

// From the pool of GPU `device`; the pool is made on first use.
Result<void*> allocate_on_device(size_t bytes, int device);
// kInvalidArgument if `block` is not a live block of any GPU's pool.
Status free_on_device(void* block);
// The same once everything that is enqueued on `stream` (a cudaStream_t) now is over; does not
// wait for it.
Status free_on_device_after(void* block, void* stream);

// Makes the foreign allocation around [address, address + bytes) reachable for peers; counted.
Status register_device_memory(const void* address, size_t bytes);
Status deregister_device_memory(const void* address);

// The GPU that `address` belongs to, or -1 for host memory and anything that CUDA does not know. A
// process that has not used CUDA pays nothing.
int device_of(const void* address);

// The GPU that the calling thread has a context on, or -1.
int current_device();

struct DeviceTotals {
  uint64_t user = 0;      // live blocks of users
  uint64_t held = 0;      // physical memory beyond those
  uint64_t reserved = 0;  // address space
};
// Of all GPUs of this process.
DeviceTotals device_totals();

}  // namespace zbccl::memory
