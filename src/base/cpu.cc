#include "base/cpu.h"

#include <sched.h>

#include <bit>
#include <cstring>
#include <fstream>
#include <string>

namespace zbccl {

CpuSet usable_cpus() {
  CpuSet set{};
  cpu_set_t native;
  CPU_ZERO(&native);
  if (sched_getaffinity(0, sizeof native, &native) == 0) {
    static_assert(sizeof native <= sizeof set);
    std::memcpy(set.data(), &native, sizeof native);
  }
  return set;
}

int count_cpus(const CpuSet& set) {
  int count = 0;
  for (const uint64_t word : set) count += std::popcount(word);
  return count;
}

int64_t cpu_quota_millicores() {
  // Version 2 gives "quota period" or "max period" in one file, version 1 in two.
  std::string quota;
  int64_t period = 0;
  if (std::ifstream file("/sys/fs/cgroup/cpu.max"); file >> quota >> period) {
    return quota == "max" || period <= 0 ? 0
                                         : std::strtoll(quota.c_str(), nullptr, 10) * 1000 / period;
  }
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  int64_t value = 0;
  if (quota_file >> value && period_file >> period && value > 0 && period > 0)
    return value * 1000 / period;
  return 0;
}

}  // namespace zbccl
