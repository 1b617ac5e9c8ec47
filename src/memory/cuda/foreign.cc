// Registered memory: what others allocated, made a segment of the pool.
#include <algorithm>

#include "base/log.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/imports.h"

namespace zbccl::cuda {
namespace {

using memory::ChunkKind;
using memory::DeviceChunk;

// An attribute of an address; 0 where the driver gives none.
template <typename T>
T attribute(const Driver& driver, CUpointer_attribute which, uint64_t address) {
  T value{};
  return driver.pointer_get_attribute(&value, which, address) == CUDA_SUCCESS ? value : T{};
}

}  // namespace

// What lies at [address, address + bytes), as something that peers can map.
Result<DevicePool::Foreign> DevicePool::describe(uint64_t address, uint64_t bytes) const {
  const DeviceGuard guard(device_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  const RelaxedCapture relaxed(*driver_);
  CUmemorytype type{};
  ZBCCL_RETURN_IF_CUDA_ERROR(
      driver_->pointer_get_attribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address),
      format("{:#x} is not memory of a GPU", address));
  const auto managed = attribute<unsigned>(*driver_, CU_POINTER_ATTRIBUTE_IS_MANAGED, address);
  if (type != CU_MEMORYTYPE_DEVICE || managed != 0) {
    return error(Code::kUnsupported,
                 "{:#x} is {} memory; only memory that lies on one GPU can be registered", address,
                 managed != 0 ? "managed" : "host");
  }
  int ordinal = -1;
  ZBCCL_RETURN_IF_CUDA_ERROR(
      driver_->pointer_get_attribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address),
      format("cannot find out which GPU {:#x} belongs to", address));
  if (ordinal != device_) {
    return error(Code::kInvalidArgument, "{:#x} is memory of GPU {}, not of GPU {}", address,
                 ordinal, device_);
  }
  Foreign foreign;
  const bool ipc =
      attribute<int>(*driver_, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, address) != 0;
  ZBCCL_RETURN_IF_ERROR(ipc ? describe_ipc(address, &foreign)
                            : describe_mapped(address, bytes, &foreign));
  if (address + bytes > foreign.base + foreign.size) {
    return error(Code::kInvalidArgument,
                 "{} bytes at {:#x} go beyond the allocation there, which ends at {:#x}", bytes,
                 address, foreign.base + foreign.size);
  }
  return foreign;
}

Status DevicePool::describe_ipc(uint64_t address, Foreign* foreign) const {
  CUdeviceptr base = 0;
  size_t size = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(driver_->mem_get_address_range(&base, &size, address),
                             format("cannot find the allocation that {:#x} lies in", address));
  foreign->kind = ChunkKind::kIpc;
  foreign->base = base;
  foreign->size = size;
  unsigned long long id = 0;  // NOLINT(google-runtime-int): the driver's type
  ZBCCL_RETURN_IF_CUDA_ERROR(
      driver_->pointer_get_attribute(&id, CU_POINTER_ATTRIBUTE_BUFFER_ID, base),
      format("cannot identify the allocation at {:#x}", uint64_t{base}));
  foreign->buffer_id = id;
  ZBCCL_RETURN_IF_CUDA_ERROR(driver_->ipc_get_mem_handle(&foreign->ipc, base),
                             format("cannot share the allocation at {:#x}", uint64_t{base}));
  return {};
}

// Memory that was mapped to where it is: every piece of the range must be exportable.
Status DevicePool::describe_mapped(uint64_t address, uint64_t bytes, Foreign* foreign) const {
  (void)address;
  (void)bytes;
  (void)foreign;
  return error(Code::kUnsupported, "mapped memory of others cannot be registered");
}

Status DevicePool::add_foreign(const void* address, size_t bytes) {
  const auto at = reinterpret_cast<uint64_t>(address);
  if (at >= base_ && at - base_ < reserve_) return {};  // registered as it is
  ZBCCL_ASSIGN_OR_RETURN(Foreign foreign, describe(at, std::max<uint64_t>(bytes, 1)));
  const std::lock_guard lock(mutex_);
  ZBCCL_ASSIGN_OR_RETURN(const uint32_t segment, segment_for(std::move(foreign)));
  ++foreign_[segment].count;
  registrations_[address].push_back(segment);
  return {};
}

// The segment that the allocation has already, or a new one.
Result<uint32_t> DevicePool::segment_for(Foreign foreign) {
  for (auto& [number, known] : foreign_) {
    if (known.withdrawn || known.base != foreign.base) continue;
    if (known.kind == foreign.kind && known.buffer_id == foreign.buffer_id &&
        known.size == foreign.size) {
      return number;
    }
    withdraw(number, known);  // freed without a word, and the address given to another
  }
  for (uint32_t number = 1; number < kMaxDeviceSegments; ++number) {
    if (foreign_.contains(number)) continue;
    foreign.use = ++serial_;
    set_range(number, foreign.base, foreign.size);
    progress_[number].store(foreign.use, std::memory_order_release);
    log::trace(log::Subsys::kMem, "GPU {}: segment {} is {} bytes at {:#x}", device_, number,
               foreign.size, foreign.base);
    foreign_.emplace(number, std::move(foreign));
    return number;
  }
  return error(Code::kOutOfMemory, "GPU {} has {} registered allocations, the most it can have",
               device_, kMaxDeviceSegments - 1);
}

// From now on its addresses are not found.
void DevicePool::withdraw(uint32_t segment, Foreign& foreign) {
  foreign.withdrawn = true;
  set_range(segment, 0, 0);
}

Status DevicePool::remove_foreign(const void* address, Deadline deadline) {
  const auto at = reinterpret_cast<uint64_t>(address);
  if (at >= base_ && at - base_ < reserve_) return {};
  {
    const std::lock_guard lock(mutex_);
    const auto it = registrations_.find(address);
    if (it == registrations_.end()) {
      return error(Code::kInvalidArgument, "{} is not registered on GPU {}", address, device_);
    }
    const uint32_t segment = it->second.back();
    it->second.pop_back();
    if (it->second.empty()) registrations_.erase(it);
    const auto known = foreign_.find(segment);
    if (known != foreign_.end() && --known->second.count == 0) withdraw(segment, known->second);
  }
  return clean(deadline);
}

// Has the peers unmap what is withdrawn and nobody counts any more.
Status DevicePool::clean(Deadline deadline) {
  std::map<uint32_t, Foreign> gone;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, foreign] : foreign_) {
      if (foreign.withdrawn && foreign.count == 0) gone.emplace(number, foreign);
    }
  }
  Status result;
  for (const auto& [number, foreign] : gone) {
    Status status = Imports::process().publish_own(*this, number, deadline);
    for (const auto& weak : foreign.shown) {
      const auto peer = weak.lock();
      if (!status.ok() || peer == nullptr || peer->dead()) continue;
      DeviceChunk dropped;
      dropped.device = id_.uuid;
      dropped.segment = number;
      dropped.use = foreign.use;
      status = peer->drop_segment(dropped, deadline);
      if (status.code() == Code::kRemoteFailed) status = {};
    }
    if (status.ok()) {
      forget(number, foreign.use);
    } else if (result.ok()) {
      result = status.with_prefix(format("segment {} of GPU {}", number, device_));
    }
  }
  return result;
}

// The number is free again.
void DevicePool::forget(uint32_t segment, uint64_t use) {
  const std::lock_guard lock(mutex_);
  const auto it = foreign_.find(segment);
  if (it == foreign_.end() || it->second.use != use) return;
  for (const Piece& piece : it->second.pieces) driver_->mem_release(piece.handle);
  foreign_.erase(it);
}

bool DevicePool::registered(const void* address) const {
  const auto at = reinterpret_cast<uint64_t>(address);
  if (at >= base_ && at - base_ < reserve_) return true;
  const std::lock_guard lock(mutex_);
  return registrations_.contains(address);
}

bool DevicePool::still_valid(const Location& location) const {
  if (location.segment == 0) return true;
  const std::lock_guard lock(mutex_);
  const auto it = foreign_.find(location.segment);
  if (it == foreign_.end() || it->second.withdrawn) return false;
  return same_memory(it->second, location.offset);
}

bool DevicePool::same_memory(const Foreign& foreign, uint64_t offset) const {
  const RelaxedCapture relaxed(*driver_);
  if (foreign.kind == ChunkKind::kIpc) {
    // NOLINTNEXTLINE(google-runtime-int): the driver's type
    return attribute<unsigned long long>(*driver_, CU_POINTER_ATTRIBUTE_BUFFER_ID, foreign.base) ==
           foreign.buffer_id;
  }
  for (const Piece& piece : foreign.pieces) {
    if (offset < piece.offset || offset - piece.offset >= piece.size) continue;
    CUmemGenericAllocationHandle handle = 0;
    const auto at = reinterpret_cast<void*>(foreign.base + offset);
    if (driver_->mem_retain_allocation_handle(&handle, at) != CUDA_SUCCESS) return false;
    driver_->mem_release(handle);
    return handle == piece.handle;
  }
  return false;
}

Status DevicePool::grant_foreign(uint32_t segment, int other) {
  if (segment == 0 || other == device_) return {};
  const std::lock_guard lock(mutex_);
  const auto it = foreign_.find(segment);
  if (it == foreign_.end() || it->second.kind == ChunkKind::kIpc) return {};
  const RelaxedCapture relaxed(*driver_);
  CUmemAccessDesc access = {};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = other;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  for (const Piece& piece : it->second.pieces) {
    ZBCCL_RETURN_IF_CUDA_ERROR(
        driver_->mem_set_access(it->second.base + piece.offset, piece.size, &access, 1),
        format("cannot make memory of GPU {} accessible to GPU {}", device_, other));
  }
  return {};
}

}  // namespace zbccl::cuda
