#include "memory/cuda/device_id.h"

#include <cstring>

#include "memory/cuda/driver.h"

namespace zbccl::cuda {

std::string DeviceId::text() const {
  std::string text = "GPU-";
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += format("{:02x}", uuid[i]);
  }
  return text;
}

Result<DeviceId> device_id(int ordinal) {
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  CUdevice device = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(d->device_get(&device, ordinal),
                             format("cannot find GPU {}", ordinal));
  CUuuid uuid = {};
  ZBCCL_RETURN_IF_CUDA_ERROR(d->device_get_uuid(&uuid, device),
                             format("cannot identify GPU {}", ordinal));
  DeviceId id;
  static_assert(sizeof uuid == sizeof id.uuid);
  std::memcpy(id.uuid.data(), &uuid, sizeof uuid);
  return id;
}

Result<std::optional<int>> device_ordinal(const DeviceId& id) {
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  int count = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(d->device_get_count(&count), "cannot count the GPUs");
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    ZBCCL_ASSIGN_OR_RETURN(const DeviceId other, device_id(ordinal));
    if (other == id) return std::optional<int>(ordinal);
  }
  return std::optional<int>();
}

}  // namespace zbccl::cuda
