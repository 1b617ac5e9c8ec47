// The part of a GPU's pool where peers try whether they reach it. Any thread.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>

#include "base/clock.h"
#include "base/status.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/probe.h"
#include "memory/device_imports.h"

namespace zbccl::cuda {

class ProbePage {
 public:
  // The pool's, made by the first call, with the pattern on the GPU.
  static Result<ProbePage*> of(DevicePool& pool);
  // The same if it was made, else null.
  static ProbePage* made(int device);

  // A place for one more peer, to be used soon: there are some dozens.
  memory::ProbePlace next_place();
  // Whether the GPU finds the token in its slot; `later` while it is asked. Waits for some
  // microseconds only.
  memory::ImportAnswer check(const memory::ProbePlace& place);

 private:
  explicit ProbePage(DevicePool& pool) : pool_(pool) {}
  Status make();
  Status copy_slot(const Driver& driver, uint64_t slot);

  DevicePool& pool_;
  uint64_t offset_ = 0;
  uint64_t seed_ = 0;

  std::mutex mutex_;  // guards everything below
  CUstream stream_ = nullptr;
  CUevent copied_ = nullptr;
  uint64_t* staging_ = nullptr;  // pinned
  uint64_t copying_ = 0;         // the slot that staging_ gets; 0: none
  uint32_t next_ = 0;
};

}  // namespace zbccl::cuda
