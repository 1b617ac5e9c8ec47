// Blocks of a pool that are freed while a stream still uses them: given back once the stream has
// come past the point where they were freed. Any thread.
#pragma once

#include <mutex>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/driver.h"

namespace zbccl::cuda {

class DeferredFrees {
 public:
  static DeferredFrees& of(DevicePool& pool);

  // kInvalidArgument if `block` is no live block of the pool or was freed already. Waits for
  // nothing; allowed while a stream is captured.
  Status free_after(void* block, CUstream stream);
  // Gives back what no stream uses any more; how many blocks that were.
  size_t reclaim();
  // Waits until everything is given back; false if there was nothing, or at the deadline.
  bool wait(Deadline deadline);

 private:
  struct Pending {
    void* block = nullptr;
    CUstream stream = nullptr;
    CUevent passed = nullptr;  // null: the stream was being captured, where events mean a graph's
  };

  explicit DeferredFrees(DevicePool& pool) : pool_(pool) {}
  Result<CUevent> mark(const Driver& driver, CUstream stream);
  bool over(const Driver& driver, Pending& pending);

  DevicePool& pool_;
  std::mutex mutex_;  // guards everything below
  std::vector<Pending> pending_;
  std::vector<CUevent> spare_;
};

}  // namespace zbccl::cuda
