// What ranks tell each other while a communicator comes to be. Plain bytes: the versions have been
// compared before.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "base/cpu.h"
#include "memory/pool.h"
#include "memory/process_info.h"
#include "plan/plan.h"

namespace zbccl::comm {

// How host ranks wait; the numbers are those of zbcclConfig_t.host_wait.
enum class Wait : uint32_t { kAuto = 0, kSpin = 1, kSleep = 2 };

// First round: who everybody is.
struct Hello {
  memory::ProcessInfo process;
  CpuSet cpus{};
  int64_t quota_millicores = 0;
  uint64_t one_shot_override = 0;
  uint32_t epoch_base = 0;
  Wait wait = Wait::kAuto;
  uint32_t has_device = 0;
  uint32_t device_asked = 0;                   // by its user, so that to go without is an error
  std::array<plan::Fit, plan::kMaxFits> fits;  // from this rank's tuning file; rank 0's count
};

// Second round: where everybody's control memory lies.
struct Showing {
  int32_t code = 0;      // what kept this rank from getting here
  int32_t culprit = -1;  // the rank whose fault that was
  uint32_t attachable = 0;
  uint32_t reserved = 0;
  memory::Location block;
  memory::Location outbox;
};

static_assert(std::is_trivially_copyable_v<Hello> && std::is_trivially_copyable_v<Showing>);

}  // namespace zbccl::comm
