// Device memory of other processes, mapped into this one, and who looks at it: the service thread
// maps what owners show, and every RemoteMemory's table follows. Any thread; the DeviceImports part
// is called by the service thread.
//
// What an owner showed stays mapped while it is connected or a RemoteMemory of it is open. Nothing
// here waits for a kernel: unmapping is the janitor's, and copies to tables are asked after.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <tuple>
#include <vector>

#include "base/clock.h"
#include "memory/cuda/device_id.h"
#include "memory/cuda/driver.h"
#include "memory/device_imports.h"

namespace zbccl::cuda {

class DevicePool;
class RemoteMemory;

// A segment of another process's GPU as this process has it mapped.
struct ImportedSegment {
  uint64_t use = 0;  // 0: nothing
  memory::ChunkKind kind = memory::ChunkKind::kVmm;
  uint64_t base = 0;  // of the reservation; not for kIpc
  uint64_t reserve = 0;
  struct Chunk {
    uint64_t size = 0;
    uint64_t serial = 0;
    std::shared_ptr<std::atomic<bool>> unmapped;  // null: it is mapped; true: it is not any more
  };
  std::map<uint64_t, Chunk> chunks;  // by offset
  std::set<int> granted;             // GPUs of this process that may access all chunks
  CUipcMemHandle ipc{};
  std::map<int, uint64_t> opened;  // kIpc: address for each GPU of this process
  // True once what this number meant before is unmapped; null: it meant nothing.
  std::shared_ptr<std::atomic<bool>> unmapped;

  // Hands the mappings to the janitor.
  void retire();
  // The same for what overlaps [offset, offset + size) and has a serial up to `serial`. True once
  // that is unmapped.
  bool clear(uint64_t offset, uint64_t size, uint64_t serial);
};

class ImportedProcess {
 public:
  struct Device {
    std::map<uint32_t, ImportedSegment> segments;
    std::vector<RemoteMemory*> viewers;
  };
  ImportedProcess() = default;
  ~ImportedProcess();
  ImportedProcess(const ImportedProcess&) = delete;
  ImportedProcess& operator=(const ImportedProcess&) = delete;
  std::map<DeviceId, Device> devices;
};

class Imports final : public memory::DeviceImports {
 public:
  static Imports& process();

  void attach(uint64_t owner) override;
  void detach(uint64_t owner) override;
  memory::ImportAnswer import_chunk(uint64_t owner, const memory::DeviceChunk& chunk,
                                    UniqueFd fd) override;
  memory::ImportAnswer drop_segment(uint64_t owner, const memory::DeviceChunk& segment) override;
  memory::ImportAnswer probe_place(const std::array<uint8_t, 16>& device,
                                   memory::ProbePlace* place) override;
  memory::ImportAnswer probe_check(const std::array<uint8_t, 16>& device,
                                   const memory::ProbePlace& place) override;

  // Waits until what lies at `offset` in segment 0 is mapped.
  Status await_mapped(const RemoteMemory& remote, uint64_t offset, Deadline deadline);

  // A GPU of this process gets a pool: what is mapped becomes reachable for it.
  void device_opened(int device);
  // A pool of this process has something new in, or no longer has, a segment: writes it into the
  // tables of the process's own viewers and waits until it is there.
  Status publish_own(DevicePool& pool, uint32_t segment, Deadline deadline);

  // For RemoteMemory. The known one, or `fresh` after it was filled in.
  Result<std::shared_ptr<RemoteMemory>> enlist(std::shared_ptr<RemoteMemory> fresh);
  std::shared_ptr<RemoteMemory> find(uint64_t owner, const DeviceId& id, int local);
  void strike(RemoteMemory* viewer);

 private:
  using Key = std::tuple<uint64_t, DeviceId, int>;
  struct Owner {
    std::weak_ptr<ImportedProcess> process;
    std::shared_ptr<ImportedProcess> pinned;  // while there is a connection
    int connections = 0;
  };

  Imports() = default;
  std::shared_ptr<ImportedProcess> process_of(uint64_t owner);
  static Status import_mapped(const Driver& driver, const memory::DeviceChunk& chunk,
                              const UniqueFd& fd, ImportedSegment* segment);
  static Status show(const Driver& driver, ImportedProcess::Device& device, uint32_t number);
  static Result<uint64_t> address_for(const Driver& driver, ImportedSegment* segment, int local);
  static bool all_arrived(const ImportedProcess::Device& device, Status* status);
  static Status clear(ImportedProcess::Device& device, uint32_t number);
  Status fill(RemoteMemory& viewer);
  static Status fill_own(RemoteMemory& viewer);

  std::mutex mutex_;
  std::map<uint64_t, Owner> owners_;
  std::map<Key, std::weak_ptr<RemoteMemory>> viewers_;
  std::map<DeviceId, std::vector<std::weak_ptr<RemoteMemory>>> own_viewers_;
};

}  // namespace zbccl::cuda
