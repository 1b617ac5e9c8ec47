#include "memory/cuda/device_pool.h"

#include <algorithm>
#include <bit>

#include "base/env.h"
#include "base/log.h"
#include "memory/cuda/imports.h"
#include "memory/cuda/janitor.h"

namespace zbccl::cuda {
namespace {

constexpr uint64_t kLeastGrowth = uint64_t{2} << 20;
constexpr uint64_t kLeastReserve = uint64_t{64} << 30;

uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

// By ordinal. A pool is `listed` before it is `ready`: from then on new chunks are made reachable
// for its GPU, and once the older ones are too, it is ready.
std::array<std::atomic<DevicePool*>, memory::kMaxDevices> listed{};
std::array<std::atomic<DevicePool*>, memory::kMaxDevices> ready{};
std::mutex opening;

CUmemAccessDesc access_for(int device) {
  CUmemAccessDesc access = {};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return access;
}

Result<bool> has(const Driver& driver, CUdevice_attribute attribute, int device) {
  int value = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(driver.device_get_attribute(&value, attribute, device),
                             format("cannot ask GPU {} what it can do", device));
  return value != 0;
}

}  // namespace

DevicePool* DevicePool::opened(int device) {
  if (device < 0 || device >= static_cast<int>(ready.size())) return nullptr;
  return listed[static_cast<size_t>(device)].load(std::memory_order_acquire);
}

Result<DevicePool*> DevicePool::of(int device) {
  if (const auto d = driver(); !d.ok()) return d.status();
  if (device >= 0 && device < static_cast<int>(ready.size())) {
    if (DevicePool* pool = ready[static_cast<size_t>(device)].load(std::memory_order_acquire)) {
      return pool;
    }
  }
  if (const auto context = primary_context(device); !context.ok()) return context.status();
  const std::lock_guard lock(opening);
  const auto index = static_cast<size_t>(device);
  if (DevicePool* pool = ready[index].load(std::memory_order_acquire)) return pool;
  DevicePool* pool = listed[index].load(std::memory_order_acquire);
  if (pool == nullptr) {
    auto fresh = std::unique_ptr<DevicePool>(new DevicePool(device));
    ZBCCL_RETURN_IF_ERROR(fresh->open());
    pool = fresh.release();
    listed[index].store(pool, std::memory_order_release);
  }
  ZBCCL_RETURN_IF_ERROR(introduce(*pool));
  ready[index].store(pool, std::memory_order_release);
  return pool;
}

Status DevicePool::open() {
  ZBCCL_ASSIGN_OR_RETURN(driver_, driver());
  const DeviceGuard guard(device_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  const RelaxedCapture relaxed(*driver_);
  ZBCCL_ASSIGN_OR_RETURN(id_, device_id(device_));
  for (const CUdevice_attribute attribute :
       {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED}) {
    ZBCCL_ASSIGN_OR_RETURN(const bool can, has(*driver_, attribute, device_));
    if (can) continue;
    return error(Code::kUnsupported,
                 "GPU {} or its driver cannot share mapped memory (attribute {} is 0)", device_,
                 static_cast<int>(attribute));
  }
  properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties_.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties_.location.id = device_;
  properties_.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  ZBCCL_ASSIGN_OR_RETURN(
      const bool rdma,
      has(*driver_, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED, device_));
  properties_.allocFlags.gpuDirectRDMACapable = rdma ? 1 : 0;
  size_t granularity = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(driver_->mem_get_allocation_granularity(
                                 &granularity, &properties_, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
                             format("cannot find the granularity of GPU {}'s memory", device_));
  granularity_ = granularity;
  size_t total = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(driver_->device_total_mem(&total, device_),
                             format("cannot find the size of GPU {}'s memory", device_));
  reserve_ = std::max(std::bit_ceil(uint64_t{total}), kLeastReserve);
  CUdeviceptr base = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(
      driver_->mem_address_reserve(&base, reserve_, std::max(granularity_, kLeastGrowth), 0, 0),
      format("cannot reserve {} bytes of addresses for GPU {}", reserve_, device_));
  base_ = base;
  keep_ = static_cast<uint64_t>(env::get_integer("ZBCCL_POOL_KEEP"));
  bases_[0].store(base_, std::memory_order_release);
  ZBCCL_RETURN_IF_ERROR(add_run(0, base_, reserve_, base_));
  log::info(log::Subsys::kMem, "GPU {} is {}: {} bytes reserved, granularity {}", device_,
            id_.text(), reserve_, granularity_);
  return {};
}

// Makes what the other pools and the peers' memory already have reachable for the new GPU.
Status DevicePool::introduce(DevicePool& fresh) {
  for (const auto& slot : listed) {
    DevicePool* const other = slot.load(std::memory_order_acquire);
    if (other == nullptr || other == &fresh) continue;
    ZBCCL_RETURN_IF_ERROR(other->grant(fresh.device_));
  }
  Imports::process().device_opened(fresh.device_);
  memory::set_device_imports(&Imports::process());
  return {};
}

Result<void*> DevicePool::allocate(size_t bytes, Use use) {
  if (bytes > reserve_) {
    return error(Code::kOutOfMemory, "cannot allocate {} bytes on GPU {}", bytes, device_);
  }
  const uint64_t size = BlockMap::rounded(bytes);
  const std::lock_guard lock(mutex_);
  auto offset = blocks_.allocate(size, use);
  if (!offset) {
    ZBCCL_RETURN_IF_ERROR(extend(size));
    offset = blocks_.allocate(size, use);
  }
  if (!offset) return error(Code::kInternal, "a fresh chunk has no room for {} bytes", size);
  return reinterpret_cast<void*>(base_ + *offset);
}

Status DevicePool::free(void* block) {
  const std::lock_guard lock(mutex_);
  const auto at = reinterpret_cast<uint64_t>(block);
  const bool inside = at >= base_ && at - base_ < reserve_;
  if (!inside || blocks_.free(at - base_) == 0) {
    return error(Code::kInvalidArgument, "{} is not the start of a live block of GPU {}'s pool",
                 block, device_);
  }
  if (blocks_.total_free() > keep_) trim(keep_, false);
  return {};
}

bool DevicePool::is_block(const void* block) const {
  const auto at = reinterpret_cast<uint64_t>(block);
  const std::lock_guard lock(mutex_);
  return at >= base_ && at - base_ < reserve_ && blocks_.is_block(at - base_);
}

// Adds a chunk at the lowest place where it makes a free range of `size`.
Status DevicePool::extend(uint64_t size) {
  for (const bool again : {false, true}) {
    uint64_t start = 0;
    uint64_t length = 0;
    const auto fits = [&](uint64_t end) {
      const uint64_t before = blocks_.free_before(start);
      const uint64_t missing = size > before ? size - before : 0;
      length = round_up(std::max(missing, kLeastGrowth), granularity_);
      return end - start >= length;
    };
    bool found = false;
    for (const auto& [offset, chunk] : chunks_) {
      found = fits(offset);
      if (found) break;
      start = offset + chunk.size;
    }
    if (!found && !fits(reserve_)) {
      return error(Code::kOutOfMemory, "GPU {}'s address range has no room for {} bytes", device_,
                   size);
    }
    const Status added = add_chunk(start, length);
    if (added.ok() || added.code() != Code::kOutOfMemory || again) return added;
    trim(0, true);  // other chunks may be free, and they are all the memory there is
  }
  return {};
}

Status DevicePool::add_chunk(uint64_t offset, uint64_t size) {
  const RelaxedCapture relaxed(*driver_);
  Chunk chunk;
  chunk.size = size;
  ZBCCL_RETURN_IF_CUDA_ERROR(driver_->mem_create(&chunk.handle, size, &properties_, 0),
                             format("cannot allocate {} bytes on GPU {}", size, device_));
  if (const CUresult result = driver_->mem_map(base_ + offset, size, 0, chunk.handle, 0);
      result != CUDA_SUCCESS) {
    driver_->mem_release(chunk.handle);
    return cuda_error(result, format("cannot map {} bytes on GPU {}", size, device_));
  }
  if (const Status status = set_access(offset, size); !status.ok()) {
    unmap_chunk(offset, chunk);
    return status;
  }
  chunk.serial = ++serial_;
  chunks_[offset] = chunk;
  blocks_.add_range(offset, size);
  progress_[0].store(chunk.serial, std::memory_order_release);
  log::trace(log::Subsys::kMem, "GPU {}: chunk {} of {} bytes at {}", device_, chunk.serial, size,
             offset);
  return {};
}

// For the owner, and for every other GPU of the process that can.
Status DevicePool::set_access(uint64_t offset, uint64_t size) {
  const CUmemAccessDesc own = access_for(device_);
  ZBCCL_RETURN_IF_CUDA_ERROR(driver_->mem_set_access(base_ + offset, size, &own, 1),
                             format("cannot make memory of GPU {} accessible to itself", device_));
  for (const auto& slot : listed) {
    const DevicePool* const other = slot.load(std::memory_order_acquire);
    if (other == nullptr || other->device_ == device_) continue;
    int can = 0;
    driver_->device_can_access_peer(&can, other->device_, device_);
    if (can == 0) continue;
    const CUmemAccessDesc access = access_for(other->device_);
    ZBCCL_RETURN_IF_CUDA_ERROR(
        driver_->mem_set_access(base_ + offset, size, &access, 1),
        format("cannot make memory of GPU {} accessible to GPU {}", device_, other->device_));
  }
  return {};
}

Status DevicePool::grant(int other) {
  int can = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(driver_->device_can_access_peer(&can, other, device_),
                             format("cannot ask whether GPU {} reaches GPU {}", other, device_));
  if (can == 0 || other == device_) return {};
  const RelaxedCapture relaxed(*driver_);
  const CUmemAccessDesc access = access_for(other);
  const std::lock_guard lock(mutex_);
  for (const auto& [offset, chunk] : chunks_) {
    if (chunk.releasing) continue;
    ZBCCL_RETURN_IF_CUDA_ERROR(
        driver_->mem_set_access(base_ + offset, chunk.size, &access, 1),
        format("cannot make memory of GPU {} accessible to GPU {}", device_, other));
  }
  return {};
}

void DevicePool::unmap_chunk(uint64_t offset, const Chunk& chunk) const {
  const RelaxedCapture relaxed(*driver_);
  const CUresult unmapped = driver_->mem_unmap(base_ + offset, chunk.size);
  const CUresult released = driver_->mem_release(chunk.handle);
  if (unmapped == CUDA_SUCCESS && released == CUDA_SUCCESS) return;
  // The process is ending, possibly between the two.
  if (unmapped == CUDA_ERROR_DEINITIALIZED || released == CUDA_ERROR_DEINITIALIZED) return;
  log::warn(log::Subsys::kMem, "{}",
            cuda_error(unmapped != CUDA_SUCCESS ? unmapped : released,
                       format("cannot give {} bytes of GPU {} back", chunk.size, device_))
                .message());
}

// Gives chunks that are wholly free, and that no peer ever saw, back to the system until at most
// `keep` bytes of such are left. `now`: before it returns, though that may wait for kernels.
void DevicePool::trim(uint64_t keep, bool now) {
  std::vector<uint64_t> idle;
  uint64_t bytes = 0;
  for (const auto& [offset, chunk] : chunks_) {
    if (chunk.shown || chunk.releasing || !blocks_.is_free(offset, chunk.size)) continue;
    idle.push_back(offset);
    bytes += chunk.size;
  }
  while (!idle.empty() && bytes > keep) {
    bytes -= chunks_[idle.back()].size;
    release_chunk(idle.back(), now);
    idle.pop_back();
  }
}

void DevicePool::release_chunk(uint64_t offset, bool now) {
  const auto it = chunks_.find(offset);
  Chunk& chunk = it->second;
  blocks_.remove_range(offset, chunk.size);
  if (now) {
    unmap_chunk(offset, chunk);
    chunks_.erase(it);
    return;
  }
  chunk.releasing = true;  // keeps its place until it is unmapped
  run_later([this, offset, copy = chunk] {
    unmap_chunk(offset, copy);
    const std::lock_guard lock(mutex_);
    chunks_.erase(offset);
  });
}

DeviceReport DevicePool::report() const {
  const std::lock_guard lock(mutex_);
  DeviceReport report;
  uint64_t physical = 0;
  for (const auto& [offset, chunk] : chunks_) physical += chunk.size;
  for (size_t i = 0; i < report.used.size(); ++i) {
    report.used[i] = blocks_.used(static_cast<Use>(i));
  }
  report.held = physical - report.used[static_cast<size_t>(Use::kUser)];
  report.reserved = reserve_;
  for (const auto& [segment, foreign] : foreign_) {
    if (!foreign.withdrawn) report.foreign += foreign.size;
  }
  return report;
}

DeviceReport DevicePool::total_report() {
  DeviceReport total;
  if (memory::device_imports() == nullptr) return total;  // also in a fork of such a process
  for (const auto& slot : ready) {
    const DevicePool* const pool = slot.load(std::memory_order_acquire);
    if (pool == nullptr) continue;
    const DeviceReport one = pool->report();
    for (size_t i = 0; i < total.used.size(); ++i) total.used[i] += one.used[i];
    total.held += one.held;
    total.reserved += one.reserved;
    total.foreign += one.foreign;
  }
  return total;
}

}  // namespace zbccl::cuda
