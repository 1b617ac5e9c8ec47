// What this process may compute on. Any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace zbccl {

// One bit per CPU that the calling thread may run on; CPUs past the last bit are left out.
inline constexpr size_t kCpuSetWords = 16;
using CpuSet = std::array<uint64_t, kCpuSetWords>;
CpuSet usable_cpus();
int count_cpus(const CpuSet& set);

// CPU time per wall time that the control group grants, in thousandths of a core; 0: no limit.
int64_t cpu_quota_millicores();

// Tells the core that this thread spins.
inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// Brings the cache line of `address` here for writing, without waiting for it.
inline void prefetch_for_write(const void* address) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(address)));
#elif defined(__aarch64__)
  asm volatile("prfm pstl1keep, %0" : : "Q"(*static_cast<const char*>(address)));
#else
  (void)address;
#endif
}

}  // namespace zbccl
