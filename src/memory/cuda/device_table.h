// The addresses of a peer's segments in the memory of a GPU, where kernels look them up; written
// by copies on a stream of its own, which no kernel holds up. Not thread-safe.
#pragma once

#include <array>
#include <cstdint>

#include "base/clock.h"
#include "base/status.h"
#include "memory/cuda/driver.h"
#include "memory/device_imports.h"

namespace zbccl::cuda {

class DeviceTable {
 public:
  DeviceTable() = default;
  // Takes a table from those the GPU has to spare, or makes one; all zeros once it has settled.
  Status take(int device);
  ~DeviceTable();
  DeviceTable(const DeviceTable&) = delete;
  DeviceTable& operator=(const DeviceTable&) = delete;

  const uint64_t* address() const { return parts_.memory; }
  // The same in pinned host memory, which kernels can read too: what was written is there at once.
  const uint64_t* host_address() const { return parts_.staging; }
  // The entry must have settled since it was written last.
  Status write(uint32_t entry, uint64_t value);
  // True once no entry on the GPU holds anything else than was written; one may still be 0 that was
  // 0 before, for which kernels look at host_address().
  Result<bool> settled() const;

  struct Parts {                 // outlive the table, since giving them back could wait for the GPU
    uint64_t* memory = nullptr;  // on the GPU
    uint64_t* staging = nullptr;  // pinned
    CUevent written = nullptr;
    CUstream stream = nullptr;
  };

 private:
  Status copy(uint32_t first, uint32_t count);

  int device_ = -1;
  Parts parts_;
  mutable bool must_settle_ = false;
};

// kTimeout if the GPU does not see it by the deadline.
Status wait_settled(const DeviceTable& table, Deadline deadline);

}  // namespace zbccl::cuda
