// Which of the compiled instruction sets this processor has.
#include <array>
#include <atomic>

#include "kernels/host/target_tables.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace zbccl::kernels {
namespace {

struct Available {
  std::array<const Target*, 4> targets{};
  size_t count = 0;
  void add(const Target& target) { targets[count++] = &target; }
};

#if defined(__x86_64__)
bool has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

Available detect() {
  __builtin_cpu_init();
  const bool sse4 = __builtin_cpu_supports("ssse3") != 0 && __builtin_cpu_supports("sse4.1") != 0 &&
                    __builtin_cpu_supports("sse4.2") != 0;
  // These ask the operating system as well, whether it keeps the wide registers.
  const bool avx2 = sse4 && __builtin_cpu_supports("avx2") != 0 &&
                    __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("bmi") != 0 &&
                    __builtin_cpu_supports("bmi2") != 0 && has_f16c();
  const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512cd") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
      __builtin_cpu_supports("avx512vl") != 0;
  Available found;
  if (avx512) found.add(avx512::kTable);
  if (avx2) found.add(avx2::kTable);
  if (sse4) found.add(sse4::kTable);
  found.add(baseline::kTable);
  return found;
}
#else
Available detect() {
  Available found;
  found.add(baseline::kTable);
  return found;
}
#endif

const Available& available() {
  static const Available found = detect();
  return found;
}

std::atomic<const Target*> current{nullptr};

}  // namespace

std::span<const Target* const> available_targets() {
  return {available().targets.data(), available().count};
}

const Target& target() {
  const Target* chosen = current.load(std::memory_order_acquire);
  if (chosen == nullptr) {
    chosen = available().targets[0];
    current.store(chosen, std::memory_order_release);
  }
  return *chosen;
}

void set_target(const Target* target) { current.store(target, std::memory_order_release); }

}  // namespace zbccl::kernels
