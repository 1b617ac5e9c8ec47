#include "memory/cuda/deferred_frees.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

#include "base/log.h"

namespace zbccl::cuda {

DeferredFrees& DeferredFrees::of(DevicePool& pool) {
  static std::array<std::atomic<DeferredFrees*>, memory::kMaxDevices> all{};
  std::atomic<DeferredFrees*>& slot = all[static_cast<size_t>(pool.device())];
  DeferredFrees* known = slot.load(std::memory_order_acquire);
  if (known != nullptr) return *known;
  auto* fresh = new DeferredFrees(pool);  // as long as the process, as the pool
  if (slot.compare_exchange_strong(known, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *known;
}

// An event that the stream passes after what is enqueued on it now; null while it is captured.
Result<CUevent> DeferredFrees::mark(const Driver& driver, CUstream stream) {
  CUstreamCaptureStatus capturing = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUresult asked = driver.stream_is_capturing(stream, &capturing);
  // The legacy stream cannot be asked while another one that waits for it is captured.
  if (asked != CUDA_SUCCESS || capturing != CU_STREAM_CAPTURE_STATUS_NONE) return CUevent{nullptr};
  CUevent event = nullptr;
  if (!spare_.empty()) {
    event = spare_.back();
    spare_.pop_back();
  } else {
    ZBCCL_RETURN_IF_CUDA_ERROR(driver.event_create(&event, CU_EVENT_DISABLE_TIMING),
                               "cannot create an event");
  }
  if (const CUresult recorded = driver.event_record(event, stream); recorded != CUDA_SUCCESS) {
    spare_.push_back(event);
    return cuda_error(recorded, "cannot record an event");
  }
  return event;
}

Status DeferredFrees::free_after(void* block, CUstream stream) {
  if (!pool_.is_block(block)) {
    return error(Code::kInvalidArgument, "{} is not the start of a live block of GPU {}'s pool",
                 block, pool_.device());
  }
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  const DeviceGuard guard(pool_.device());
  ZBCCL_RETURN_IF_ERROR(guard.status());
  const RelaxedCapture relaxed(*d);
  {
    const std::lock_guard lock(mutex_);
    if (std::any_of(pending_.begin(), pending_.end(),
                    [&](const Pending& pending) { return pending.block == block; })) {
      return error(Code::kInvalidArgument, "{} was freed already", block);
    }
    ZBCCL_ASSIGN_OR_RETURN(CUevent passed, mark(*d, stream));
    pending_.push_back({block, stream, passed});
  }
  (void)reclaim();
  return {};
}

bool DeferredFrees::over(const Driver& driver, Pending& pending) {
  if (pending.passed == nullptr) {
    const auto passed = mark(driver, pending.stream);
    if (!passed.ok() || *passed == nullptr) return false;
    pending.passed = *passed;
  }
  return driver.event_query(pending.passed) == CUDA_SUCCESS;
}

size_t DeferredFrees::reclaim() {
  const auto d = driver();
  if (!d.ok()) return 0;
  const std::lock_guard lock(mutex_);
  if (pending_.empty()) return 0;
  const DeviceGuard guard(pool_.device());
  if (!guard.status().ok()) return 0;
  const RelaxedCapture relaxed(**d);
  return std::erase_if(pending_, [&](Pending& pending) {
    if (!over(**d, pending)) return false;
    spare_.push_back(pending.passed);
    if (const Status freed = pool_.free(pending.block); !freed.ok()) {
      log::warn(log::Subsys::kMem, "{}", freed.message());
    }
    return true;
  });
}

bool DeferredFrees::wait(Deadline deadline) {
  size_t blocks = 0;
  for (;;) {
    blocks += reclaim();
    {
      const std::lock_guard lock(mutex_);
      if (pending_.empty()) return blocks > 0;
    }
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

}  // namespace zbccl::cuda
