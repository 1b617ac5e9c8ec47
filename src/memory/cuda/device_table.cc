#include "memory/cuda/device_table.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "memory/cuda/device_pool.h"

namespace zbccl::cuda {
namespace {

constexpr size_t kBytes = memory::kMaxDeviceSegments * sizeof(uint64_t);

struct Stock {
  std::mutex mutex;
  std::map<int, CUstream> streams;
  std::map<int, std::vector<DeviceTable::Parts>> spare;
};

Stock& stock() {
  static Stock* const it = new Stock;  // as long as the process
  return *it;
}

// The highest priority: streams of other priorities do not share its channel to the GPU, where a
// copy could queue behind one that waits for a kernel.
Result<CUstream> stream_of(Stock& s, const Driver& driver, int device) {
  CUstream& stream = s.streams[device];
  if (stream != nullptr) return stream;
  int least = 0;
  int greatest = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(driver.ctx_get_stream_priority_range(&least, &greatest),
                             "cannot find the priorities of streams");
  ZBCCL_RETURN_IF_CUDA_ERROR(
      driver.stream_create_with_priority(&stream, CU_STREAM_NON_BLOCKING, greatest),
      format("cannot create a stream on GPU {}", device));
  return stream;
}

Status make_parts(Stock& s, const Driver& driver, int device, DeviceTable::Parts* parts) {
  ZBCCL_ASSIGN_OR_RETURN(parts->stream, stream_of(s, driver, device));
  ZBCCL_ASSIGN_OR_RETURN(DevicePool* const pool, DevicePool::of(device));
  void* staging = nullptr;
  ZBCCL_RETURN_IF_CUDA_ERROR(driver.mem_host_alloc(&staging, kBytes, CU_MEMHOSTALLOC_PORTABLE),
                             "cannot allocate pinned memory");
  parts->staging = static_cast<uint64_t*>(staging);
  ZBCCL_RETURN_IF_CUDA_ERROR(driver.event_create(&parts->written, CU_EVENT_DISABLE_TIMING),
                             "cannot create an event");
  ZBCCL_ASSIGN_OR_RETURN(void* const memory, pool->allocate(kBytes, memory::Use::kMetadata));
  parts->memory = static_cast<uint64_t*>(memory);
  return {};
}

}  // namespace

Status DeviceTable::take(int device) {
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  const DeviceGuard guard(device);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  const RelaxedCapture relaxed(*d);
  {
    Stock& s = stock();
    const std::lock_guard lock(s.mutex);
    std::vector<Parts>& spare = s.spare[device];
    if (!spare.empty()) {
      parts_ = spare.back();
      spare.pop_back();
    } else {
      ZBCCL_RETURN_IF_ERROR(make_parts(s, *d, device, &parts_));
    }
  }
  device_ = device;
  must_settle_ = true;
  std::fill_n(parts_.staging, memory::kMaxDeviceSegments, uint64_t{0});
  return copy(0, memory::kMaxDeviceSegments);
}

DeviceTable::~DeviceTable() {
  if (device_ < 0) return;
  Stock& s = stock();
  const std::lock_guard lock(s.mutex);
  s.spare[device_].push_back(parts_);
}

Status DeviceTable::copy(uint32_t first, uint32_t count) {
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  const DeviceGuard guard(device_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  const RelaxedCapture relaxed(*d);
  ZBCCL_RETURN_IF_CUDA_ERROR(
      d->memcpy_htod_async(reinterpret_cast<CUdeviceptr>(parts_.memory + first),
                           parts_.staging + first, count * sizeof(uint64_t), parts_.stream),
      format("cannot write a table of addresses on GPU {}", device_));
  ZBCCL_RETURN_IF_CUDA_ERROR(d->event_record(parts_.written, parts_.stream),
                             "cannot record an event");
  return {};
}

Status DeviceTable::write(uint32_t entry, uint64_t value) {
  std::atomic_ref<uint64_t> word(parts_.staging[entry]);
  if (word.load(std::memory_order_relaxed) != 0) must_settle_ = true;
  word.store(value, std::memory_order_release);
  return copy(entry, 1);
}

Result<bool> DeviceTable::settled() const {
  if (!must_settle_) return true;
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  const RelaxedCapture relaxed(*d);
  const CUresult result = d->event_query(parts_.written);
  if (result == CUDA_ERROR_NOT_READY) return false;
  ZBCCL_RETURN_IF_CUDA_ERROR(result,
                             format("a table of addresses was not written on GPU {}", device_));
  must_settle_ = false;
  return true;
}

Status wait_settled(const DeviceTable& table, Deadline deadline) {
  for (;;) {
    ZBCCL_ASSIGN_OR_RETURN(const bool settled, table.settled());
    if (settled) return {};
    if (deadline.passed()) {
      return error(Code::kTimeout, "a table of addresses did not reach its GPU");
    }
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

}  // namespace zbccl::cuda
