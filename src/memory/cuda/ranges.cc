// Finding the segment of an address, without a lock.
#include "memory/cuda/device_pool.h"

namespace zbccl::cuda {

std::optional<Location> DevicePool::locate(const void* address, size_t bytes) const {
  const auto at = reinterpret_cast<uint64_t>(address);
  const uint32_t count = num_ranges_.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < count; ++i) {
    const Range& range = ranges_[i];
    for (;;) {
      const uint32_t before = range.version.load(std::memory_order_acquire);
      const uint64_t base = range.base.load(std::memory_order_relaxed);
      const uint64_t size = range.size.load(std::memory_order_relaxed);
      const uint64_t origin = range.origin.load(std::memory_order_relaxed);
      const uint32_t segment = range.segment.load(std::memory_order_relaxed);
      std::atomic_thread_fence(std::memory_order_acquire);
      if ((before & 1) != 0 || range.version.load(std::memory_order_relaxed) != before) continue;
      if (at >= base && at - base < size && bytes <= size - (at - base)) {
        return Location{segment, at - origin};
      }
      break;
    }
  }
  return std::nullopt;
}

void DevicePool::set_range(Range& range, uint32_t segment, uint64_t base, uint64_t size,
                           uint64_t origin) {
  const uint32_t version = range.version.load(std::memory_order_relaxed);
  range.version.store(version + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  range.segment.store(segment, std::memory_order_relaxed);
  range.base.store(base, std::memory_order_relaxed);
  range.size.store(size, std::memory_order_relaxed);
  range.origin.store(origin, std::memory_order_relaxed);
  range.version.store(version + 2, std::memory_order_release);
}

// Makes [base, base + size) known, joined to a run of the segment that it touches.
Status DevicePool::add_run(uint32_t segment, uint64_t base, uint64_t size, uint64_t origin) {
  const uint32_t count = num_ranges_.load(std::memory_order_relaxed);
  Range* unused = nullptr;
  for (uint32_t i = 0; i < count; ++i) {
    Range& range = ranges_[i];
    const uint64_t its_base = range.base.load(std::memory_order_relaxed);
    const uint64_t its_size = range.size.load(std::memory_order_relaxed);
    if (its_size == 0) {
      unused = &range;
    } else if (range.segment.load(std::memory_order_relaxed) == segment) {
      const bool after = its_base + its_size == base;
      if (!after && base + size != its_base) continue;
      set_range(range, segment, after ? its_base : base, its_size + size, origin);
      return {};
    }
  }
  if (unused == nullptr) {
    if (count == kMaxRanges) {
      return error(Code::kOutOfMemory,
                   "GPU {} has {} separate pieces of registered memory, the most it can have",
                   device_, kMaxRanges);
    }
    unused = &ranges_[count];
    num_ranges_.store(count + 1, std::memory_order_release);
  }
  set_range(*unused, segment, base, size, origin);
  return {};
}

void DevicePool::drop_runs(uint32_t segment) {
  const uint32_t count = num_ranges_.load(std::memory_order_relaxed);
  for (uint32_t i = 1; i < count; ++i) {
    Range& range = ranges_[i];
    if (range.segment.load(std::memory_order_relaxed) != segment) continue;
    set_range(range, 0, 0, 0, 0);
  }
}

}  // namespace zbccl::cuda
