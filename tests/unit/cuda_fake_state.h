// What the parts of the fake driver share. Included by them only.
#pragma once

#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "cuda_fake_driver.h"

namespace zbccl::cuda::fake {

struct Allocation {
  int fd = -1;
  size_t size = 0;
  int device = 0;  // of the machine
  bool imported = false;
  bool exportable = true;
  int handles = 0;
  int mappings = 0;
};

struct MappedRange {
  size_t size = 0;
  CUmemGenericAllocationHandle handle = 0;
  std::set<int> access;  // ordinals
};

struct Malloced {
  size_t size = 0;
  int device = 0;  // of the machine
  int fd = -1;
  uint64_t id = 0;
};

struct IpcName {  // in a CUipcMemHandle
  int pid;
  int fd;
  uint64_t size;
  uint64_t id;
};

struct State {
  std::mutex mutex;
  Faults faults;
  std::vector<int> visible;
  uint64_t next_handle = 100;
  uint64_t next_id = 1;
  std::map<CUmemGenericAllocationHandle, Allocation> allocations;
  std::map<uint64_t, MappedRange> mapped;
  std::map<uint64_t, size_t> reserved;
  std::map<uint64_t, Malloced> malloced;
  std::map<uint64_t, std::pair<size_t, int>> opened;  // by ipc: size, count
  std::map<int, size_t> taken;
  std::set<std::pair<int, int>> peer_access;
  int inits = 0;
  bool capturing = false;
};

State& state();

inline thread_local std::vector<CUcontext> stack;
inline thread_local CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

inline int machine_device(int ordinal) { return state().visible.at(static_cast<size_t>(ordinal)); }
inline int num_visible() { return static_cast<int>(state().visible.size()); }
inline CUcontext context_of(int ordinal) {
  return reinterpret_cast<CUcontext>(static_cast<uintptr_t>(ordinal) + 1);
}

// Puts the functions of memory into the table.
void add_memory(Driver* table);

}  // namespace zbccl::cuda::fake
