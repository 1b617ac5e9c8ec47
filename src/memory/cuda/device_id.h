// Which GPU a GPU is, in words that mean the same in every process: ordinals depend on
// CUDA_VISIBLE_DEVICES. Values; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"

namespace zbccl::cuda {

struct DeviceId {
  std::array<uint8_t, 16> uuid{};
  bool operator==(const DeviceId& other) const { return uuid == other.uuid; }
  bool operator<(const DeviceId& other) const { return uuid < other.uuid; }
  std::string text() const;  // "GPU-00112233-4455-..." as nvidia-smi prints it
};

Result<DeviceId> device_id(int ordinal);
// The ordinal of the GPU in this process, if it can see it.
Result<std::optional<int>> device_ordinal(const DeviceId& id);

}  // namespace zbccl::cuda
