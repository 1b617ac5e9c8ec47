#include "memory/cuda/imports.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/janitor.h"
#include "memory/cuda/probe_page.h"
#include "memory/cuda/remote_memory.h"

namespace zbccl::cuda {
namespace {

using memory::ChunkKind;
using memory::DeviceChunk;
using memory::ImportAnswer;

constexpr uint64_t kMaxReserve = uint64_t{1} << 46;
constexpr uint64_t kReserveAlignment = uint64_t{2} << 20;
// How long the service thread looks after a copy before it lets the owner ask again.
constexpr auto kPatience = std::chrono::microseconds(500);

// What came from outside is looked at before it reaches the driver.
Status check(const DeviceChunk& chunk, bool drop) {
  const bool known = chunk.kind >= 1 && chunk.kind <= 3;
  const bool inside = chunk.reserve <= kMaxReserve && chunk.size <= chunk.reserve &&
                      chunk.offset <= chunk.reserve - chunk.size;
  if (chunk.segment < memory::kMaxDeviceSegments && chunk.use != 0 &&
      (drop || (known && inside && chunk.size != 0))) {
    return {};
  }
  return error(Code::kInvalidArgument,
               "a chunk that cannot be: segment {}, use {}, kind {}, {} bytes at {} of {}",
               chunk.segment, chunk.use, chunk.kind, chunk.size, chunk.offset, chunk.reserve);
}

CUmemAccessDesc access_for(int device) {
  CUmemAccessDesc access = {};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return access;
}

bool has(const ImportedSegment& segment, const DeviceChunk& chunk) {
  const auto it = segment.chunks.find(chunk.offset);
  return it != segment.chunks.end() && it->second.serial == chunk.serial &&
         it->second.size == chunk.size && it->second.unmapped == nullptr;
}

// Runs on the janitor's thread. The process may be ending, so nothing is made of failures.
void unmap(const ImportedSegment& segment) {
  const auto d = driver();
  if (!d.ok()) return;
  const RelaxedCapture relaxed(**d);
  for (const auto& [local, address] : segment.opened) {
    const DeviceGuard guard(local);
    if (guard.status().ok()) (*d)->ipc_close_mem_handle(address);
  }
  for (const auto& [offset, chunk] : segment.chunks) {
    if (chunk.unmapped == nullptr) (*d)->mem_unmap(segment.base + offset, chunk.size);
  }
  if (segment.base != 0) (*d)->mem_address_free(segment.base, segment.reserve);
}

ProbePage* page_of(const DeviceId& id) {
  for (int device = 0; device < static_cast<int>(memory::kMaxDevices); ++device) {
    const DevicePool* const pool = DevicePool::opened(device);
    if (pool != nullptr && pool->id() == id) return ProbePage::made(device);
  }
  return nullptr;
}

}  // namespace

void ImportedSegment::retire() {
  if (use == 0) return;
  auto flag = std::make_shared<std::atomic<bool>>(false);
  ImportedSegment old = std::move(*this);
  *this = {};
  unmapped = flag;
  run_later([old = std::move(old), flag] {
    unmap(old);
    flag->store(true, std::memory_order_release);
  });
}

bool ImportedSegment::clear(uint64_t offset, uint64_t size, uint64_t serial) {
  bool done = true;
  for (auto it = chunks.begin(); it != chunks.end();) {
    Chunk& chunk = it->second;
    const bool overlaps = it->first < offset + size && offset < it->first + chunk.size;
    if (!overlaps || chunk.serial > serial) {
      ++it;
      continue;
    }
    if (chunk.unmapped == nullptr) {
      chunk.unmapped = std::make_shared<std::atomic<bool>>(false);
      run_later([at = base + it->first, bytes = chunk.size, flag = chunk.unmapped] {
        if (const auto d = driver(); d.ok()) (*d)->mem_unmap(at, bytes);
        flag->store(true, std::memory_order_release);
      });
    }
    if (chunk.unmapped->load(std::memory_order_acquire)) {
      it = chunks.erase(it);
    } else {
      done = false;
      ++it;
    }
  }
  return done;
}

ImportedProcess::~ImportedProcess() {
  for (auto& [id, device] : devices) {
    for (auto& [number, segment] : device.segments) segment.retire();
  }
}

Imports& Imports::process() {
  static Imports* const it = new Imports;  // as long as the process; the service thread may use it
  return *it;
}

std::shared_ptr<ImportedProcess> Imports::process_of(uint64_t owner) {
  Owner& entry = owners_[owner];
  auto process = entry.process.lock();
  if (process == nullptr) {
    process = std::make_shared<ImportedProcess>();
    entry.process = process;
  }
  return process;
}

void Imports::attach(uint64_t owner) {
  const std::lock_guard lock(mutex_);
  auto process = process_of(owner);
  Owner& entry = owners_[owner];
  entry.pinned = std::move(process);
  ++entry.connections;
}

void Imports::detach(uint64_t owner) {
  const std::lock_guard lock(mutex_);
  const auto it = owners_.find(owner);
  if (it == owners_.end()) return;
  if (--it->second.connections <= 0) it->second.pinned.reset();
  if (it->second.process.expired()) owners_.erase(it);
}

ImportAnswer Imports::import_chunk(uint64_t owner, const DeviceChunk& chunk, UniqueFd fd) {
  if (const Status fine = check(chunk, false); !fine.ok()) return {false, fine};
  const auto d = driver();
  if (!d.ok()) return {false, d.status()};
  const RelaxedCapture relaxed(**d);
  const std::lock_guard lock(mutex_);
  const auto process = process_of(owner);
  ImportedProcess::Device& device = process->devices[DeviceId{chunk.device}];
  ImportedSegment& segment = device.segments[chunk.segment];
  Status status;
  if (!all_arrived(device, &status)) return {true, error(Code::kTimeout, "a table is written")};
  if (!status.ok()) return {false, status};
  if (segment.use != 0 && segment.use != chunk.use) {  // the owner took the number for another
    status = clear(device, chunk.segment);
    if (!status.ok()) return {false, status};
  }
  if (segment.unmapped != nullptr && !segment.unmapped->load(std::memory_order_acquire)) {
    return {true, error(Code::kTimeout, "it is unmapping what the segment was before")};
  }
  segment.unmapped.reset();
  const auto kind = static_cast<ChunkKind>(chunk.kind);
  const bool fresh = segment.use == 0;
  if (fresh) {
    segment.use = chunk.use;
    segment.kind = kind;
  }
  if (segment.kind != kind) return {false, error(Code::kInvalidArgument, "a segment of two kinds")};
  if (kind == ChunkKind::kIpc) {
    static_assert(sizeof segment.ipc == sizeof chunk.ipc);
    std::memcpy(&segment.ipc, chunk.ipc.data(), sizeof segment.ipc);
  } else if (!has(segment, chunk)) {
    if (!segment.clear(chunk.offset, chunk.size, chunk.serial)) {
      return {true, error(Code::kTimeout, "it is unmapping what was there before")};
    }
    status = import_mapped(**d, chunk, fd, &segment);
    if (!status.ok()) {
      if (fresh) segment.retire();
      return {false, status};
    }
  }
  status = show(**d, device, chunk.segment);
  if (!status.ok()) return {false, status};
  const auto until = Clock::now() + kPatience;
  while (!all_arrived(device, &status)) {
    if (Clock::now() > until) return {true, error(Code::kTimeout, "a table is written")};
    std::this_thread::yield();
  }
  return {false, status};
}

// Maps one chunk into the segment's range, for every GPU of this process that has a pool.
Status Imports::import_mapped(const Driver& driver, const DeviceChunk& chunk, const UniqueFd& fd,
                              ImportedSegment* segment) {
  if (!fd.valid()) return error(Code::kInvalidArgument, "a chunk came without its descriptor");
  if (segment->base == 0) {
    CUdeviceptr base = 0;
    ZBCCL_RETURN_IF_CUDA_ERROR(
        driver.mem_address_reserve(&base, chunk.reserve, kReserveAlignment, 0, 0),
        format("cannot reserve {} bytes of addresses", chunk.reserve));
    segment->base = base;
    segment->reserve = chunk.reserve;
    for (size_t i = 0; i < memory::kMaxDevices; ++i) {  // those that can are left below
      if (DevicePool::opened(static_cast<int>(i)) != nullptr) {
        segment->granted.insert(static_cast<int>(i));
      }
    }
  }
  if (segment->reserve != chunk.reserve) {
    return error(Code::kInvalidArgument, "a segment of {} bytes that had {}", chunk.reserve,
                 segment->reserve);
  }
  CUmemGenericAllocationHandle handle = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(
      driver.mem_import_from_shareable_handle(
          &handle, reinterpret_cast<void*>(static_cast<uintptr_t>(fd.get())),
          CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
      format("cannot import {} bytes of another process's GPU memory", chunk.size));
  const uint64_t at = segment->base + chunk.offset;
  const CUresult mapped = driver.mem_map(at, chunk.size, 0, handle, 0);
  driver.mem_release(handle);  // the mapping keeps the memory
  ZBCCL_RETURN_IF_CUDA_ERROR(
      mapped, format("cannot map {} bytes of another process's GPU memory", chunk.size));
  CUresult refused = CUDA_SUCCESS;
  for (auto it = segment->granted.begin(); it != segment->granted.end();) {
    const CUmemAccessDesc access = access_for(*it);
    const CUresult result = driver.mem_set_access(at, chunk.size, &access, 1);
    if (result == CUDA_SUCCESS) {
      ++it;
      continue;
    }
    refused = result;
    it = segment->granted.erase(it);
  }
  if (segment->granted.empty()) {
    driver.mem_unmap(at, chunk.size);
    ZBCCL_RETURN_IF_CUDA_ERROR(refused, "no GPU of this process reaches it");
    return error(Code::kUnsupported, "no GPU of this process reaches it");
  }
  segment->chunks[chunk.offset] = {chunk.size, chunk.serial, nullptr};
  log::trace(log::Subsys::kMem, "imported {} bytes at {} of segment {} of {}", chunk.size,
             chunk.offset, chunk.segment, DeviceId{chunk.device}.text());
  return {};
}

// The address of the segment for GPU `local`.
Result<uint64_t> Imports::address_for(const Driver& driver, ImportedSegment* segment, int local) {
  if (segment->kind != ChunkKind::kIpc) {
    if (segment->granted.contains(local)) return segment->base;
    return error(Code::kUnsupported, "GPU {} does not reach another process's GPU", local);
  }
  const auto known = segment->opened.find(local);
  if (known != segment->opened.end()) return known->second;
  const DeviceGuard guard(local);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  CUdeviceptr address = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(
      driver.ipc_open_mem_handle(&address, segment->ipc, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
      format("GPU {} cannot open another process's memory", local));
  segment->opened[local] = address;
  return uint64_t{address};
}

// Writes the segment's address into the tables of all who look at it.
Status Imports::show(const Driver& driver, ImportedProcess::Device& device, uint32_t number) {
  ImportedSegment& segment = device.segments[number];
  for (RemoteMemory* viewer : device.viewers) {
    ZBCCL_ASSIGN_OR_RETURN(const uint64_t address, address_for(driver, &segment, viewer->local()));
    ZBCCL_RETURN_IF_ERROR(viewer->set(number, address));
  }
  return {};
}

// True if the GPUs see what was written into the tables, or if that failed.
bool Imports::all_arrived(const ImportedProcess::Device& device, Status* status) {
  for (const RemoteMemory* viewer : device.viewers) {
    const auto settled = viewer->table_.settled();
    if (!settled.ok()) {
      *status = settled.status();
      return true;
    }
    if (!*settled) return false;
  }
  return true;
}

Status Imports::clear(ImportedProcess::Device& device, uint32_t number) {
  for (RemoteMemory* viewer : device.viewers) ZBCCL_RETURN_IF_ERROR(viewer->set(number, 0));
  device.segments[number].retire();
  return {};
}

ImportAnswer Imports::drop_segment(uint64_t owner, const DeviceChunk& dropped) {
  if (const Status fine = check(dropped, true); !fine.ok()) return {false, fine};
  const std::lock_guard lock(mutex_);
  const auto process = process_of(owner);
  ImportedProcess::Device& device = process->devices[DeviceId{dropped.device}];
  const auto it = device.segments.find(dropped.segment);
  if (it == device.segments.end()) return {};
  if (dropped.size != 0) {
    const bool gone = it->second.use != dropped.use ||
                      it->second.clear(dropped.offset, dropped.size, dropped.serial);
    return gone ? ImportAnswer{}
                : ImportAnswer{true, error(Code::kTimeout, "it is unmapping a part")};
  }
  Status status;
  if (!all_arrived(device, &status)) return {true, error(Code::kTimeout, "a table is written")};
  if (!status.ok()) return {false, status};
  if (it->second.use == dropped.use) {
    if (const Status cleared = clear(device, dropped.segment); !cleared.ok()) {
      return {false, cleared};
    }
  }
  const auto& unmapped = it->second.unmapped;
  if (unmapped != nullptr && !unmapped->load(std::memory_order_acquire)) {
    return {true, error(Code::kTimeout, "it is unmapping it")};
  }
  return {};
}

ImportAnswer Imports::probe_place(const std::array<uint8_t, 16>& device,
                                  memory::ProbePlace* place) {
  ProbePage* const page = page_of(DeviceId{device});
  if (page == nullptr) return {true, error(Code::kTimeout, "it does not use that GPU yet")};
  *place = page->next_place();
  return {};
}

ImportAnswer Imports::probe_check(const std::array<uint8_t, 16>& device,
                                  const memory::ProbePlace& place) {
  ProbePage* const page = page_of(DeviceId{device});
  if (page == nullptr) return {false, error(Code::kInvalidArgument, "no probe was begun")};
  return page->check(place);
}

Status Imports::await_mapped(const RemoteMemory& remote, uint64_t offset, Deadline deadline) {
  const auto mapped = [&] {
    if (remote.base(0) == 0) return false;
    if (remote.self_) return true;
    const std::lock_guard lock(mutex_);
    const auto& segments = remote.process_->devices[remote.id_].segments;
    const auto segment = segments.find(0);
    if (segment == segments.end()) return false;
    const auto& chunks = segment->second.chunks;
    auto it = chunks.upper_bound(offset);
    if (it == chunks.begin()) return false;
    --it;
    return offset < it->first + it->second.size;
  };
  while (!mapped()) {
    if (deadline.passed()) {
      return error(Code::kTimeout, "memory of {} is not shared with this process",
                   remote.id_.text());
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return {};
}

void Imports::device_opened(int local) {
  const auto d = driver();
  if (!d.ok()) return;
  const RelaxedCapture relaxed(**d);
  const CUmemAccessDesc access = access_for(local);
  const std::lock_guard lock(mutex_);
  for (auto& [nonce, owner] : owners_) {
    const auto process = owner.process.lock();
    if (process == nullptr) continue;
    for (auto& [id, device] : process->devices) {
      for (auto& [number, segment] : device.segments) {
        if (segment.base == 0 || segment.granted.contains(local)) continue;
        const bool all = std::all_of(
            segment.chunks.begin(), segment.chunks.end(), [&, &base = segment.base](const auto& c) {
              return c.second.unmapped != nullptr ||
                     (*d)->mem_set_access(base + c.first, c.second.size, &access, 1) ==
                         CUDA_SUCCESS;
            });
        if (all) segment.granted.insert(local);
      }
    }
  }
}

Status Imports::publish_own(DevicePool& pool, uint32_t segment, Deadline deadline) {
  std::vector<std::shared_ptr<RemoteMemory>> viewers;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& weak : own_viewers_[pool.id()]) {
      if (auto viewer = weak.lock()) viewers.push_back(std::move(viewer));
    }
  }
  for (const auto& viewer : viewers) ZBCCL_RETURN_IF_ERROR(wait_settled(viewer->table_, deadline));
  {
    const std::lock_guard lock(mutex_);
    const uint64_t base = pool.segment_base(segment);
    for (const auto& viewer : viewers) {
      if (base != 0) ZBCCL_RETURN_IF_ERROR(pool.grant_foreign(segment, viewer->local()));
      ZBCCL_RETURN_IF_ERROR(viewer->set(segment, base));
    }
  }
  for (const auto& viewer : viewers) ZBCCL_RETURN_IF_ERROR(wait_settled(viewer->table_, deadline));
  return {};
}

std::shared_ptr<RemoteMemory> Imports::find(uint64_t owner, const DeviceId& id, int local) {
  const std::lock_guard lock(mutex_);
  const auto it = viewers_.find({owner, id, local});
  return it == viewers_.end() ? nullptr : it->second.lock();
}

Result<std::shared_ptr<RemoteMemory>> Imports::enlist(std::shared_ptr<RemoteMemory> fresh) {
  std::shared_ptr<RemoteMemory> known;  // outlives the lock
  const std::lock_guard lock(mutex_);
  std::weak_ptr<RemoteMemory>& slot = viewers_[{fresh->owner_, fresh->id_, fresh->local_}];
  known = slot.lock();
  if (known != nullptr) return known;  // another thread was faster
  ZBCCL_RETURN_IF_ERROR(fresh->self_ ? fill_own(*fresh) : fill(*fresh));
  if (fresh->self_) {
    own_viewers_[fresh->id_].push_back(fresh);
  } else {
    fresh->process_->devices[fresh->id_].viewers.push_back(fresh.get());
  }
  slot = fresh;
  return fresh;
}

// What the owner has shown so far.
Status Imports::fill(RemoteMemory& viewer) {
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  const RelaxedCapture relaxed(*d);
  viewer.process_ = process_of(viewer.owner_);
  for (auto& [number, segment] : viewer.process_->devices[viewer.id_].segments) {
    if (segment.use == 0) continue;
    ZBCCL_ASSIGN_OR_RETURN(const uint64_t address, address_for(*d, &segment, viewer.local_));
    ZBCCL_RETURN_IF_ERROR(viewer.set(number, address));
  }
  return {};
}

Status Imports::fill_own(RemoteMemory& viewer) {
  DevicePool* const pool = DevicePool::opened(viewer.owner_device_);
  if (pool == nullptr) return error(Code::kInternal, "GPU {} has no pool", viewer.owner_device_);
  for (uint32_t number = 0; number < memory::kMaxDeviceSegments; ++number) {
    const uint64_t base = pool->segment_base(number);
    if (base == 0) continue;
    ZBCCL_RETURN_IF_ERROR(pool->grant_foreign(number, viewer.local_));
    ZBCCL_RETURN_IF_ERROR(viewer.set(number, base));
  }
  return {};
}

void Imports::strike(RemoteMemory* viewer) {
  const std::lock_guard lock(mutex_);
  if (viewer->process_ != nullptr) {
    std::erase(viewer->process_->devices[viewer->id_].viewers, viewer);
    viewer->process_.reset();
    const auto it = owners_.find(viewer->owner_);
    if (it != owners_.end() && it->second.process.expired()) owners_.erase(it);
  }
  if (const auto it = own_viewers_.find(viewer->id_); it != own_viewers_.end()) {
    std::erase_if(it->second, [](const auto& weak) { return weak.expired(); });
  }
  const auto it = viewers_.find({viewer->owner_, viewer->id_, viewer->local_});
  if (it != viewers_.end() && it->second.expired()) viewers_.erase(it);
}

}  // namespace zbccl::cuda
