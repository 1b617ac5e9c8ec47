// The fake driver's memory: allocations are memfds, mapped where the library asks.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>

#include "cuda_fake_state.h"

namespace zbccl::cuda::fake {
namespace {

CUresult address_reserve(CUdeviceptr* address, size_t size, size_t alignment, CUdeviceptr,
                         unsigned long long) {
  alignment = std::max(alignment, kGranularity);
  if (size % 4096 != 0) return CUDA_ERROR_INVALID_VALUE;
  void* const wide = mmap(nullptr, size + alignment, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (wide == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const auto from = reinterpret_cast<uint64_t>(wide);
  const uint64_t start = (from + alignment - 1) / alignment * alignment;
  if (start > from) munmap(wide, start - from);
  munmap(reinterpret_cast<void*>(start + size), from + alignment - start);
  const std::lock_guard lock(state().mutex);
  state().reserved[start] = size;
  *address = start;
  return CUDA_SUCCESS;
}
CUresult address_free(CUdeviceptr address, size_t size) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto it = s.reserved.find(address);
  if (it == s.reserved.end() || it->second != size) return CUDA_ERROR_INVALID_VALUE;
  const auto mapped = s.mapped.lower_bound(address);
  if (mapped != s.mapped.end() && mapped->first < address + size) return CUDA_ERROR_INVALID_VALUE;
  munmap(reinterpret_cast<void*>(address), size);
  s.reserved.erase(it);
  return CUDA_SUCCESS;
}
void drop_if_unused(State& s, CUmemGenericAllocationHandle handle) {
  const Allocation& allocation = s.allocations[handle];
  if (allocation.handles > 0 || allocation.mappings > 0) return;
  if (!allocation.imported) s.taken[allocation.device] -= allocation.size;
  close(allocation.fd);
  s.allocations.erase(handle);
}
CUresult create(CUmemGenericAllocationHandle* handle, size_t size,
                const CUmemAllocationProp* properties, unsigned long long) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (size == 0 || size % kGranularity != 0) return CUDA_ERROR_INVALID_VALUE;
  const int device = machine_device(properties->location.id);
  if (s.taken[device] + size > s.faults.memory) return CUDA_ERROR_OUT_OF_MEMORY;
  Allocation allocation;
  allocation.fd = memfd_create("fake", MFD_CLOEXEC);
  if (ftruncate(allocation.fd, static_cast<off_t>(size)) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
  allocation.size = size;
  allocation.device = device;
  allocation.exportable =
      properties->requestedHandleTypes == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  allocation.handles = 1;
  s.taken[device] += size;
  *handle = s.next_handle++;
  s.allocations[*handle] = allocation;
  return CUDA_SUCCESS;
}
CUresult release(CUmemGenericAllocationHandle handle) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto it = s.allocations.find(handle);
  if (it == s.allocations.end() || it->second.handles == 0) return CUDA_ERROR_INVALID_VALUE;
  --it->second.handles;
  drop_if_unused(s, handle);
  return CUDA_SUCCESS;
}
CUresult mem_map(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                 unsigned long long) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto it = s.allocations.find(handle);
  if (it == s.allocations.end() || offset != 0 || size > it->second.size) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  auto range = s.reserved.upper_bound(at);
  if (range == s.reserved.begin()) return CUDA_ERROR_INVALID_VALUE;
  --range;
  if (at + size > range->first + range->second) return CUDA_ERROR_INVALID_VALUE;
  const auto next = s.mapped.lower_bound(at);
  if (next != s.mapped.end() && next->first < at + size) return CUDA_ERROR_INVALID_VALUE;
  if (next != s.mapped.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second.size > at) return CUDA_ERROR_INVALID_VALUE;
  }
  void* const done =
      mmap(reinterpret_cast<void*>(at), size, PROT_NONE, MAP_SHARED | MAP_FIXED, it->second.fd, 0);
  if (done == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  s.mapped[at] = {size, handle, {}};
  ++it->second.mappings;
  return CUDA_SUCCESS;
}
CUresult mem_unmap(CUdeviceptr at, size_t size) {
  State& s = state();
  while (s.faults.slow_unmap) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const std::lock_guard lock(s.mutex);
  const auto it = s.mapped.find(at);
  if (it == s.mapped.end() || it->second.size != size) return CUDA_ERROR_INVALID_VALUE;
  (void)mmap(reinterpret_cast<void*>(at), size, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  const CUmemGenericAllocationHandle handle = it->second.handle;
  s.mapped.erase(it);
  --s.allocations[handle].mappings;
  drop_if_unused(s, handle);
  return CUDA_SUCCESS;
}
CUresult set_access(CUdeviceptr at, size_t size, const CUmemAccessDesc* access, size_t count) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto it = s.mapped.find(at);
  if (it == s.mapped.end() || it->second.size != size) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; ++i) {
    if (access[i].location.id == s.faults.no_access_for) return CUDA_ERROR_INVALID_DEVICE;
    it->second.access.insert(access[i].location.id);
  }
  mprotect(reinterpret_cast<void*>(at), size, PROT_READ | PROT_WRITE);
  return CUDA_SUCCESS;
}
CUresult export_handle(void* shareable, CUmemGenericAllocationHandle handle,
                       CUmemAllocationHandleType type, unsigned long long) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto it = s.allocations.find(handle);
  if (it == s.allocations.end() || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
      !it->second.exportable || s.faults.no_export) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *static_cast<int*>(shareable) = fcntl(it->second.fd, F_DUPFD_CLOEXEC, 0);
  return CUDA_SUCCESS;
}
CUresult import_handle(CUmemGenericAllocationHandle* handle, void* shareable,
                       CUmemAllocationHandleType) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (s.faults.no_import) return CUDA_ERROR_INVALID_VALUE;
  Allocation allocation;
  const int fd = static_cast<int>(reinterpret_cast<uintptr_t>(shareable));
  allocation.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (allocation.fd < 0) return CUDA_ERROR_INVALID_VALUE;
  allocation.size = static_cast<size_t>(lseek(fd, 0, SEEK_END));
  allocation.imported = true;
  allocation.handles = 1;
  *handle = s.next_handle++;
  s.allocations[*handle] = allocation;
  return CUDA_SUCCESS;
}

// The mapping or allocation around an address.
template <typename Map>
auto around(Map& ranges, uint64_t at, size_t (*size)(const typename Map::mapped_type&)) {
  auto it = ranges.upper_bound(at);
  if (it == ranges.begin()) return ranges.end();
  --it;
  return at - it->first < size(it->second) ? it : ranges.end();
}
auto mapped_at(State& s, uint64_t at) {
  return around(
      s.mapped, at, +[](const MappedRange& range) { return range.size; });
}
auto malloced_at(State& s, uint64_t at) {
  return around(
      s.malloced, at, +[](const Malloced& block) { return block.size; });
}

CUresult retain(CUmemGenericAllocationHandle* handle, void* address) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto it = mapped_at(s, reinterpret_cast<uint64_t>(address));
  if (it == s.mapped.end()) return CUDA_ERROR_INVALID_VALUE;
  *handle = it->second.handle;
  ++s.allocations[*handle].handles;
  return CUDA_SUCCESS;
}
CUresult properties_of(CUmemAllocationProp* properties, CUmemGenericAllocationHandle handle) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto it = s.allocations.find(handle);
  if (it == s.allocations.end()) return CUDA_ERROR_INVALID_VALUE;
  *properties = {};
  properties->type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties->location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  for (int ordinal = 0; ordinal < num_visible(); ++ordinal) {
    if (machine_device(ordinal) == it->second.device) properties->location.id = ordinal;
  }
  properties->requestedHandleTypes =
      it->second.exportable ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : CU_MEM_HANDLE_TYPE_NONE;
  return CUDA_SUCCESS;
}
CUresult address_range(CUdeviceptr* base, size_t* size, CUdeviceptr at) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (const auto it = malloced_at(s, at); it != s.malloced.end()) {
    *base = it->first;
    *size = it->second.size;
    return CUDA_SUCCESS;
  }
  const auto it = mapped_at(s, at);
  if (it == s.mapped.end()) return CUDA_ERROR_NOT_FOUND;
  *base = it->first;
  *size = it->second.size;
  return CUDA_SUCCESS;
}
CUresult pointer_attribute(void* data, CUpointer_attribute attribute, CUdeviceptr at) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto block = malloced_at(s, at);
  const auto range = mapped_at(s, at);
  const bool is_block = block != s.malloced.end();
  if (!is_block && range == s.mapped.end()) return CUDA_ERROR_INVALID_VALUE;
  const int machine = is_block ? block->second.device : s.allocations[range->second.handle].device;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<CUmemorytype*>(data) = CU_MEMORYTYPE_DEVICE;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *static_cast<unsigned*>(data) = 0; return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      for (int ordinal = 0; ordinal < num_visible(); ++ordinal) {
        if (machine_device(ordinal) == machine) *static_cast<int*>(data) = ordinal;
      }
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      *static_cast<int*>(data) = is_block ? 1 : 0;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      *static_cast<uint64_t*>(data) = is_block ? block->second.id : 0;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: {
      if (is_block) return CUDA_ERROR_INVALID_VALUE;
      const auto it = around(
          s.reserved, at, +[](const size_t& bytes) { return bytes; });
      *static_cast<uint64_t*>(data) =
          attribute == CU_POINTER_ATTRIBUTE_RANGE_SIZE ? it->second : it->first;
      return CUDA_SUCCESS;
    }
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
}
CUresult ipc_get(CUipcMemHandle* handle, CUdeviceptr at) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto it = s.malloced.find(at);
  if (it == s.malloced.end() || stack.empty()) return CUDA_ERROR_INVALID_VALUE;
  const IpcName name = {getpid(), it->second.fd, it->second.size, it->second.id};
  std::memset(handle, 0, sizeof *handle);
  std::memcpy(handle, &name, sizeof name);
  return CUDA_SUCCESS;
}
CUresult ipc_open(CUdeviceptr* address, CUipcMemHandle handle, unsigned) {
  IpcName name;
  std::memcpy(&name, &handle, sizeof name);
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (name.pid == getpid() || state().faults.no_import) return CUDA_ERROR_INVALID_HANDLE;
  const std::string path = "/proc/" + std::to_string(name.pid) + "/fd/" + std::to_string(name.fd);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return CUDA_ERROR_INVALID_HANDLE;
  void* const at = mmap(nullptr, name.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (at == MAP_FAILED) return CUDA_ERROR_MAP_FAILED;
  const std::lock_guard lock(state().mutex);
  state().opened[reinterpret_cast<uint64_t>(at)] = {name.size, 1};
  *address = reinterpret_cast<uint64_t>(at);
  return CUDA_SUCCESS;
}
CUresult ipc_close(CUdeviceptr address) {
  State& s = state();
  while (s.faults.slow_unmap) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const std::lock_guard lock(s.mutex);
  const auto it = s.opened.find(address);
  if (it == s.opened.end()) return CUDA_ERROR_INVALID_VALUE;
  munmap(reinterpret_cast<void*>(address), it->second.first);
  s.opened.erase(it);
  return CUDA_SUCCESS;
}

}  // namespace

void add_memory(Driver* table) {
  table->mem_address_reserve = address_reserve;
  table->mem_address_free = address_free;
  table->mem_create = create;
  table->mem_release = release;
  table->mem_map = mem_map;
  table->mem_unmap = mem_unmap;
  table->mem_set_access = set_access;
  table->mem_export_to_shareable_handle = export_handle;
  table->mem_import_from_shareable_handle = import_handle;
  table->mem_retain_allocation_handle = retain;
  table->mem_get_allocation_properties = properties_of;
  table->mem_get_address_range = address_range;
  table->pointer_get_attribute = pointer_attribute;
  table->ipc_get_mem_handle = ipc_get;
  table->ipc_open_mem_handle = ipc_open;
  table->ipc_close_mem_handle = ipc_close;
}

void* device_malloc(int device, size_t bytes) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  Malloced block;
  block.size = bytes;
  block.device = machine_device(device);
  block.fd = memfd_create("fake", MFD_CLOEXEC);
  if (ftruncate(block.fd, static_cast<off_t>(bytes)) != 0) return nullptr;
  block.id = s.next_id++;
  void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, block.fd, 0);
  s.malloced[reinterpret_cast<uint64_t>(at)] = block;
  return at;
}

void device_free(void* address) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto it = s.malloced.find(reinterpret_cast<uint64_t>(address));
  munmap(address, it->second.size);
  close(it->second.fd);
  s.malloced.erase(it);
}

void* reserve(size_t bytes) {
  CUdeviceptr at = 0;
  address_reserve(&at, bytes, 0, 0, 0);
  return reinterpret_cast<void*>(at);
}

CUmemGenericAllocationHandle map(int device, void* at, size_t bytes, bool exportable) {
  CUmemAllocationProp properties = {};
  properties.location.id = device;
  properties.requestedHandleTypes =
      exportable ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : CU_MEM_HANDLE_TYPE_NONE;
  CUmemGenericAllocationHandle handle = 0;
  create(&handle, bytes, &properties, 0);
  const auto where = reinterpret_cast<CUdeviceptr>(at);
  mem_map(where, bytes, 0, handle, 0);
  CUmemAccessDesc access = {};
  access.location.id = device;
  set_access(where, bytes, &access, 1);
  release(handle);
  return handle;
}

void unmap(void* at, size_t bytes) { mem_unmap(reinterpret_cast<CUdeviceptr>(at), bytes); }

Counts counts() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  Counts counts;
  counts.allocations = static_cast<int>(s.allocations.size());
  counts.mappings = static_cast<int>(s.mapped.size());
  counts.reservations = static_cast<int>(s.reserved.size());
  counts.ipc_opened = static_cast<int>(s.opened.size());
  counts.contexts_pushed = static_cast<int>(stack.size());
  counts.initialised = s.inits;
  return counts;
}

size_t taken(int device) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return s.taken[machine_device(device)];
}

bool accessible(int ordinal, const void* address) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto it = mapped_at(s, reinterpret_cast<uint64_t>(address));
  return it != s.mapped.end() && it->second.access.contains(ordinal);
}

}  // namespace zbccl::cuda::fake
