#include "memory/cuda/probe_page.h"

#include <sys/random.h>

#include <atomic>
#include <cerrno>
#include <thread>

namespace zbccl::cuda {
namespace {

using memory::ImportAnswer;
using memory::ProbePlace;

constexpr uint64_t kPlaceBytes = kProbeWords * sizeof(uint64_t);
constexpr uint32_t kSlots = 63;
constexpr uint64_t kPageBytes = (1 + kSlots) * kPlaceBytes;
constexpr auto kPatience = std::chrono::microseconds(500);
constexpr auto kSettleTime = Milliseconds(30'000);

std::array<std::atomic<ProbePage*>, memory::kMaxDevices> pages{};
std::mutex making;

}  // namespace

ProbePage* ProbePage::made(int device) {
  return pages[static_cast<size_t>(device)].load(std::memory_order_acquire);
}

Result<ProbePage*> ProbePage::of(DevicePool& pool) {
  if (ProbePage* const known = made(pool.device())) return known;
  const std::lock_guard lock(making);
  if (ProbePage* const known = made(pool.device())) return known;
  auto fresh = std::unique_ptr<ProbePage>(new ProbePage(pool));
  ZBCCL_RETURN_IF_ERROR(fresh->make());
  pages[static_cast<size_t>(pool.device())].store(fresh.get(), std::memory_order_release);
  return fresh.release();  // as long as the pool, which is as long as the process
}

Status ProbePage::make() {
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  const DeviceGuard guard(pool_.device());
  ZBCCL_RETURN_IF_ERROR(guard.status());
  const RelaxedCapture relaxed(*d);
  if (getrandom(&seed_, sizeof seed_, 0) != sizeof seed_) {
    return system_error("getrandom", errno);
  }
  ZBCCL_RETURN_IF_CUDA_ERROR(d->load_probe(), "cannot load the kernel of probes");
  int least = 0;
  int greatest = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(d->ctx_get_stream_priority_range(&least, &greatest),
                             "cannot find the priorities of streams");
  ZBCCL_RETURN_IF_CUDA_ERROR(
      d->stream_create_with_priority(&stream_, CU_STREAM_NON_BLOCKING, greatest),
      "cannot create a stream");
  ZBCCL_RETURN_IF_CUDA_ERROR(d->event_create(&copied_, CU_EVENT_DISABLE_TIMING),
                             "cannot create an event");
  void* staging = nullptr;
  ZBCCL_RETURN_IF_CUDA_ERROR(d->mem_host_alloc(&staging, kPlaceBytes, CU_MEMHOSTALLOC_PORTABLE),
                             "cannot allocate pinned memory");
  staging_ = static_cast<uint64_t*>(staging);
  ZBCCL_ASSIGN_OR_RETURN(void* const page, pool_.allocate(kPageBytes, Use::kMetadata));
  offset_ = pool_.locate(page, kPageBytes)->offset;
  for (uint32_t i = 0; i < kProbeWords; ++i) staging_[i] = probe_word(seed_, i);
  ZBCCL_RETURN_IF_CUDA_ERROR(
      d->memcpy_htod_async(reinterpret_cast<CUdeviceptr>(page), staging_, kPlaceBytes, stream_),
      "cannot write a pattern for probes");
  ZBCCL_RETURN_IF_CUDA_ERROR(d->event_record(copied_, stream_), "cannot record an event");
  const Deadline deadline = Deadline::after(kSettleTime);
  for (;;) {
    const CUresult result = d->event_query(copied_);
    if (result == CUDA_SUCCESS) return {};
    if (result != CUDA_ERROR_NOT_READY) return cuda_error(result, "a pattern for probes");
    if (deadline.passed()) return error(Code::kTimeout, "a pattern did not reach its GPU");
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

ProbePlace ProbePage::next_place() {
  const std::lock_guard lock(mutex_);
  ProbePlace place;
  place.pattern = offset_;
  place.seed = seed_;
  place.slot = offset_ + (1 + next_++ % kSlots) * kPlaceBytes;
  return place;
}

Status ProbePage::copy_slot(const Driver& driver, uint64_t slot) {
  ZBCCL_RETURN_IF_CUDA_ERROR(
      driver.memcpy_dtoh_async(staging_, pool_.segment_base(0) + slot, kPlaceBytes, stream_),
      "cannot read a probe");
  ZBCCL_RETURN_IF_CUDA_ERROR(driver.event_record(copied_, stream_), "cannot record an event");
  copying_ = slot;
  return {};
}

ImportAnswer ProbePage::check(const ProbePlace& place) {
  const bool inside = place.slot > offset_ && place.slot < offset_ + kPageBytes &&
                      (place.slot - offset_) % kPlaceBytes == 0;
  if (!inside) return {false, error(Code::kInvalidArgument, "{} is no slot", place.slot)};
  const auto d = driver();
  if (!d.ok()) return {false, d.status()};
  const DeviceGuard guard(pool_.device());
  if (!guard.status().ok()) return {false, guard.status()};
  const RelaxedCapture relaxed(**d);
  const std::lock_guard lock(mutex_);
  const auto until = Clock::now() + kPatience;
  for (bool mine = copying_ == place.slot;;) {
    const CUresult result = (*d)->event_query(copied_);
    if (result != CUDA_SUCCESS && result != CUDA_ERROR_NOT_READY) {
      return {false, cuda_error(result, "cannot read a probe")};
    }
    if (result == CUDA_SUCCESS && mine) break;
    if (result == CUDA_SUCCESS) {
      if (Status copying = copy_slot(**d, place.slot); !copying.ok()) return {false, copying};
      mine = true;
    }
    if (Clock::now() > until) return {true, error(Code::kTimeout, "it reads a probe")};
    std::this_thread::yield();
  }
  copying_ = 0;
  uint32_t missing = 0;
  for (uint32_t i = 0; i < kProbeWords; ++i) {
    missing += staging_[i] != probe_word(place.token, i) ? 1 : 0;
  }
  if (missing == 0) return {};
  return {false, error(Code::kCuda, "{} of {} words that were written did not arrive on its GPU",
                       missing, kProbeWords)};
}

}  // namespace zbccl::cuda
