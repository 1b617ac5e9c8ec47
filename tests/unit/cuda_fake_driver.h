// A CUDA driver made of host memory, for tests of what manages device memory on machines without a
// GPU: allocations are memfds, so that they can be shared between processes and read by the test
// where the library mapped them. Every test that uses it runs in processes of its own.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory/cuda/driver.h"

namespace zbccl::cuda::fake {

inline constexpr int kDevices = 4;  // of the machine
inline constexpr size_t kGranularity = size_t{2} << 20;

struct Faults {
  std::atomic<bool> misread{false};         // probes read otherwise than is written
  std::atomic<bool> lose_writes{false};     // what probes write does not arrive
  std::atomic<int> no_access_for{-1};       // cuMemSetAccess refuses this ordinal
  std::atomic<int> no_peer_from{-1};        // cuDeviceCanAccessPeer: this ordinal reaches nobody
  std::atomic<bool> no_import{false};       // imports fail
  std::atomic<bool> no_export{false};       // exports fail
  std::atomic<bool> streams_stand{false};   // events are not reached
  std::atomic<bool> slow_unmap{false};      // unmapping waits until this is false
  std::atomic<bool> lose_attribute{false};  // no sharing of mapped memory
  std::atomic<size_t> memory{size_t{1} << 30};  // of each GPU, as long as it lasts
};

// Puts the fake in the place of the driver, once for each process. `visible`: which GPUs of the
// machine the process sees, in its order; empty: all.
void install(std::vector<int> visible = {});
Faults& faults();

// Memory as cudaMalloc gives it, and its release.
void* device_malloc(int device, size_t bytes);
void device_free(void* address);
// Mapped memory of another library: a reservation with chunks in it, exportable or not.
void* reserve(size_t bytes);
CUmemGenericAllocationHandle map(int device, void* at, size_t bytes, bool exportable);
void unmap(void* at, size_t bytes);

struct Counts {
  int allocations = 0;  // handles not released, or still mapped
  int mappings = 0;
  int reservations = 0;
  int ipc_opened = 0;
  int contexts_pushed = 0;  // by the calling thread and not popped
  int initialised = 0;
};
Counts counts();
// Memory of the GPU taken by all allocations of this process.
size_t taken(int device);
// True if GPU `ordinal` may access the address.
bool accessible(int ordinal, const void* address);
// Makes `ordinal` the calling thread's current GPU, as a program would; -1: none.
void use(int ordinal);
void set_capturing(bool capturing);  // of all streams

}  // namespace zbccl::cuda::fake
