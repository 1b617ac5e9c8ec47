// Registered memory: what others allocated, made a segment of the pool.
#include <algorithm>

#include "base/log.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/imports.h"

namespace zbccl::cuda {
namespace {

using memory::ChunkKind;
using memory::DeviceChunk;

constexpr auto kLetGoTime = Milliseconds(2000);

// An attribute of an address; 0 where the driver gives none.
template <typename T>
T attribute(const Driver& driver, CUpointer_attribute which, uint64_t address) {
  T value{};
  return driver.pointer_get_attribute(&value, which, address) == CUDA_SUCCESS ? value : T{};
}

}  // namespace

// Memory of this GPU and of no other.
Status DevicePool::check_owner(uint64_t address) const {
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
  if (ordinal == device_) return {};
  return error(Code::kInvalidArgument, "{:#x} is memory of GPU {}, not of GPU {}", address, ordinal,
               device_);
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
  foreign->pieces.push_back({0, size, 0, 0});
  return {};
}

// Memory that another library has mapped: the segment is the whole reservation, and its pieces are
// what is mapped around [address, address + bytes).
Status DevicePool::describe_mapped(uint64_t address, uint64_t bytes, Foreign* foreign) const {
  foreign->kind = ChunkKind::kVmmForeign;
  foreign->base = attribute<uint64_t>(*driver_, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, address);
  foreign->size = attribute<size_t>(*driver_, CU_POINTER_ATTRIBUTE_RANGE_SIZE, address);
  if (foreign->base == 0 || address < foreign->base || foreign->size == 0) {
    return error(Code::kUnsupported,
                 "the driver does not tell what allocation {:#x} lies in; memory of zbccl's "
                 "allocator or of cudaMalloc can be registered",
                 address);
  }
  for (uint64_t at = address; at < address + bytes;) {
    ZBCCL_ASSIGN_OR_RETURN(const Piece piece, piece_at(at, *foreign));
    foreign->pieces.push_back(piece);
    at = foreign->base + piece.offset + piece.size;
  }
  return {};
}

// The mapping around an address, with its handle retained.
Result<DevicePool::Piece> DevicePool::piece_at(uint64_t address, const Foreign& foreign) const {
  Piece piece;
  const CUresult retained =
      driver_->mem_retain_allocation_handle(&piece.handle, reinterpret_cast<void*>(address));
  if (retained != CUDA_SUCCESS) {
    return error(Code::kUnsupported,
                 "the memory at {:#x} is neither of cudaMalloc nor mapped by cuMemMap, so no other "
                 "process can reach it ({})",
                 address, cuda_error(retained, "cuMemRetainAllocationHandle").message());
  }
  const auto fail = [&](Status status) {
    driver_->mem_release(piece.handle);
    return status;
  };
  CUdeviceptr start = 0;
  size_t size = 0;
  if (const CUresult result = driver_->mem_get_address_range(&start, &size, address);
      result != CUDA_SUCCESS) {
    return fail(cuda_error(result, format("cannot find the mapping at {:#x}", address)));
  }
  if (start < foreign.base || start > address || address - start >= size) {
    return fail(error(Code::kUnsupported,
                      "the driver does not tell the extent of the mapping at {:#x}", address));
  }
  piece.offset = start - foreign.base;
  piece.size = size;
  CUmemAllocationProp properties = {};
  if (const CUresult result = driver_->mem_get_allocation_properties(&properties, piece.handle);
      result != CUDA_SUCCESS) {
    return fail(cuda_error(result, format("cannot ask after the memory at {:#x}", address)));
  }
  if ((properties.requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) == 0) {
    return fail(error(
        Code::kUnsupported,
        "the memory at {:#x} was made without a handle that other processes can take; let the "
        "library that made it ask for POSIX file descriptors, or use zbccl's allocator",
        address));
  }
  return piece;
}

void DevicePool::release_pieces(const Foreign& foreign) const {
  for (const Piece& piece : foreign.pieces) {
    if (piece.handle != 0) driver_->mem_release(piece.handle);
  }
}

Status DevicePool::add_foreign(const void* address, size_t bytes) {
  const auto at = reinterpret_cast<uint64_t>(address);
  bytes = std::max<size_t>(bytes, 1);
  if (at >= base_ && at - base_ < reserve_) return {};  // registered as it is
  const DeviceGuard guard(device_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  const RelaxedCapture relaxed(*driver_);
  ZBCCL_RETURN_IF_ERROR(check_owner(at));
  Foreign seen;
  const bool ipc =
      attribute<int>(*driver_, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, at) != 0;
  Status status = ipc ? describe_ipc(at, &seen) : describe_mapped(at, bytes, &seen);
  if (status.ok() && at + bytes > seen.base + seen.size) {
    status = error(Code::kInvalidArgument,
                   "{} bytes at {:#x} go beyond the allocation there, which ends at {:#x}", bytes,
                   at, seen.base + seen.size);
  }
  if (!status.ok()) {
    release_pieces(seen);
    return status;
  }
  std::unique_lock lock(mutex_);
  sweep();
  if (foreign_.size() == kMaxDeviceSegments - 1 && unclean_) {
    // All numbers are taken, some by what peers need only let go.
    lock.unlock();
    (void)clean(Deadline::after(kLetGoTime), {});
    lock.lock();
  }
  ZBCCL_ASSIGN_OR_RETURN(const uint32_t segment, segment_for(seen));
  Foreign& registered = foreign_[segment];
  ++registered.count;
  registrations_[address].push_back(registered.use);
  return {};
}

// The segment that the allocation has already, or a new one. The handles in `seen` are taken over,
// here and below, also by a call that fails.
Result<uint32_t> DevicePool::segment_for(const Foreign& seen) {
  for (auto& [number, known] : foreign_) {
    if (known.withdrawn || known.base != seen.base || known.kind != seen.kind ||
        known.size != seen.size || known.buffer_id != seen.buffer_id) {
      continue;
    }
    ZBCCL_RETURN_IF_ERROR(merge(number, seen));
    return number;
  }
  return new_segment(seen);
}

// Adds what is new of `seen` to a segment.
Status DevicePool::merge(uint32_t segment, const Foreign& seen) {
  Foreign& known = foreign_[segment];
  Status status;
  for (Piece piece : seen.pieces) {
    const bool has = std::any_of(known.pieces.begin(), known.pieces.end(),
                                 [&](const Piece& k) { return k.offset == piece.offset; });
    if (!has && status.ok()) {
      status = add_run(segment, known.base + piece.offset, piece.size, known.base);
    }
    if (has || !status.ok()) {
      if (piece.handle != 0) driver_->mem_release(piece.handle);
      continue;
    }
    piece.serial = ++serial_;
    known.pieces.push_back(piece);
    progress_[segment].store(piece.serial, std::memory_order_release);
  }
  return status;
}

Result<uint32_t> DevicePool::new_segment(const Foreign& seen) {
  uint32_t number = 1;
  while (number < kMaxDeviceSegments && foreign_.contains(number)) ++number;
  if (number == kMaxDeviceSegments) {
    release_pieces(seen);
    return error(Code::kOutOfMemory, "GPU {} has {} registered allocations, the most it can have",
                 device_, kMaxDeviceSegments - 1);
  }
  Foreign& fresh = foreign_[number];
  fresh = seen;
  fresh.pieces.clear();
  fresh.use = ++serial_;
  bases_[number].store(fresh.base, std::memory_order_release);
  log::trace(log::Subsys::kMem, "GPU {}: segment {} is {} bytes at {:#x}", device_, number,
             fresh.size, fresh.base);
  if (Status merged = merge(number, seen); !merged.ok()) {
    release_pieces(fresh);
    drop_runs(number);
    bases_[number].store(0, std::memory_order_release);
    foreign_.erase(number);
    return merged;
  }
  return number;
}

// From now on its addresses are not found.
void DevicePool::withdraw(uint32_t segment, Foreign& foreign) {
  foreign.withdrawn = true;
  unclean_ = true;
  drop_runs(segment);
  bases_[segment].store(0, std::memory_order_release);
}

// Withdraws what was freed without a word. Peers that have it mapped keep it from being freed, and
// its address may be given to another.
void DevicePool::sweep() {
  for (auto& [number, foreign] : foreign_) {
    if (!foreign.withdrawn) sweep_pieces(number, foreign);
  }
}

void DevicePool::sweep_pieces(uint32_t segment, Foreign& foreign) {
  const auto first_gone = std::stable_partition(
      foreign.pieces.begin(), foreign.pieces.end(),
      [&](const Piece& piece) { return same_piece(foreign, piece, piece.offset); });
  if (first_gone == foreign.pieces.end()) return;
  unclean_ = true;
  for (auto it = first_gone; it != foreign.pieces.end(); ++it) {
    if (it->handle != 0) driver_->mem_release(it->handle);
    foreign.gone.push_back({it->offset, it->size, it->serial, 0});
  }
  foreign.pieces.erase(first_gone, foreign.pieces.end());
  if (foreign.pieces.empty()) {
    withdraw(segment, foreign);
    return;
  }
  drop_runs(segment);
  for (const Piece& piece : foreign.pieces) {
    // There were as many runs before.
    (void)add_run(segment, foreign.base + piece.offset, piece.size, foreign.base);
  }
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
    const uint64_t use = it->second.front();
    it->second.pop_front();
    if (it->second.empty()) registrations_.erase(it);
    const auto known = std::find_if(foreign_.begin(), foreign_.end(),
                                    [&](const auto& item) { return item.second.use == use; });
    if (known != foreign_.end() && --known->second.count == 0) {
      withdraw(known->first, known->second);
    }
  }
  return clean(deadline, {});
}

// Has the peers unmap what is withdrawn or gone.
Status DevicePool::clean(Deadline deadline, const Cancelled& cancelled) {
  std::map<uint32_t, Foreign> dirty;
  {
    const std::lock_guard lock(mutex_);
    if (!unclean_) return {};
    unclean_ = false;
    for (const auto& [number, foreign] : foreign_) {
      if (foreign.withdrawn || !foreign.gone.empty()) dirty.emplace(number, foreign);
    }
  }
  Status result;
  for (const auto& [number, foreign] : dirty) {
    DeviceChunk what;
    what.device = id_.uuid;
    what.segment = number;
    what.use = foreign.use;
    Status status;
    if (foreign.withdrawn) {
      status = Imports::process().publish_own(*this, number, deadline);
      if (status.ok()) status = drop(foreign, what, deadline, cancelled);
    } else {
      for (const Piece& piece : foreign.gone) {
        what.offset = piece.offset;
        what.size = piece.size;
        what.serial = piece.serial;
        if (status.ok()) status = drop(foreign, what, deadline, cancelled);
      }
    }
    if (status.ok()) {
      forget(number, foreign);
    } else if (result.ok()) {
      result = status.with_prefix(format("segment {} of GPU {}", number, device_));
    }
  }
  if (!result.ok()) {
    const std::lock_guard lock(mutex_);
    unclean_ = true;
  }
  return result;
}

Status DevicePool::drop(const Foreign& foreign, const DeviceChunk& what, Deadline deadline,
                        const Cancelled& cancelled) {
  for (const auto& weak : foreign.shown) {
    const auto peer = weak.lock();
    if (peer == nullptr || peer->dead()) continue;
    Status status = peer->drop_segment(what, deadline, cancelled);
    // Who has ended, or has ended all its communicators, uses it no more.
    if (status.code() == Code::kRemoteFailed || status.code() == Code::kNetwork) continue;
    ZBCCL_RETURN_IF_ERROR(status);
  }
  return {};
}

// No peer has what was withdrawn or gone when `cleaned` was read.
void DevicePool::forget(uint32_t segment, const Foreign& cleaned) {
  const std::lock_guard lock(mutex_);
  const auto it = foreign_.find(segment);
  if (it == foreign_.end() || it->second.use != cleaned.use) return;
  if (cleaned.withdrawn) {
    release_pieces(it->second);
    foreign_.erase(it);
    return;
  }
  std::erase_if(it->second.gone, [&](const Piece& piece) {
    return std::any_of(cleaned.gone.begin(), cleaned.gone.end(),
                       [&](const Piece& c) { return c.serial == piece.serial; });
  });
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
  const Foreign& foreign = it->second;
  return std::any_of(foreign.pieces.begin(), foreign.pieces.end(), [&](const Piece& piece) {
    return location.offset >= piece.offset && location.offset - piece.offset < piece.size &&
           same_piece(foreign, piece, location.offset);
  });
}

// Whether at `offset`, which lies in the piece, there is what was registered.
bool DevicePool::same_piece(const Foreign& foreign, const Piece& piece, uint64_t offset) const {
  const RelaxedCapture relaxed(*driver_);
  if (foreign.kind == ChunkKind::kIpc) {
    // NOLINTNEXTLINE(google-runtime-int): the driver's type
    return attribute<unsigned long long>(*driver_, CU_POINTER_ATTRIBUTE_BUFFER_ID, foreign.base) ==
           foreign.buffer_id;
  }
  CUmemGenericAllocationHandle handle = 0;
  const auto at = reinterpret_cast<void*>(foreign.base + offset);
  if (driver_->mem_retain_allocation_handle(&handle, at) != CUDA_SUCCESS) return false;
  driver_->mem_release(handle);
  return handle == piece.handle;
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
