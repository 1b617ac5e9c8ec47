#include "collectives/cuda/mirror.h"

#include <algorithm>

namespace zbccl::cuda {
namespace {

constexpr size_t kLine = 128;

}  // namespace

void Mirror::add(const void* data, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  if (bytes > 0) regions_.push_back({begin, begin + bytes, 0});
}

size_t Mirror::arrange() {
  std::sort(regions_.begin(), regions_.end(),
            [](const Region& a, const Region& b) { return a.begin < b.begin; });
  std::vector<Region> merged;
  for (const Region& region : regions_) {
    if (!merged.empty() && region.begin < merged.back().end) {
      merged.back().end = std::max(merged.back().end, region.end);
    } else {
      merged.push_back(region);
    }
  }
  regions_ = std::move(merged);
  size_t total = 0;
  for (Region& region : regions_) {
    // As far from a line's beginning as on the device.
    region.offset = total + region.begin % kLine;
    total = (region.offset + (region.end - region.begin) + kLine - 1) / kLine * kLine;
  }
  return total;
}

void* Mirror::at(const void* address) const {
  const auto at = reinterpret_cast<uintptr_t>(address);
  auto next = std::upper_bound(regions_.begin(), regions_.end(), at,
                               [](uintptr_t a, const Region& region) { return a < region.begin; });
  if (next == regions_.begin()) return const_cast<void*>(address);
  --next;
  if (at >= next->end) return const_cast<void*>(address);
  return base_ + next->offset + (at - next->begin);
}

}  // namespace zbccl::cuda
