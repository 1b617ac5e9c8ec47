#include <fmt/core.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>

#include "doctor/checks.h"
#include "topology/machine.h"

namespace zbccl::tools {
namespace {

using Level = Finding::Level;

constexpr rlim_t kFewFiles = 1024;
constexpr double kGiB = 1 << 30;

std::string limit_text(rlim_t value) {
  return value == RLIM_INFINITY ? "unlimited" : fmt::format("{}", value);
}

Finding check_files() {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  const std::string text = fmt::format("{} open files, {} at most", limit_text(limit.rlim_cur),
                                       limit_text(limit.rlim_max));
  if (limit.rlim_cur >= kFewFiles) return {Level::kOk, "nofile", text};
  return {Level::kWarn, "nofile",
          text + fmt::format("; many ranks need {}: ulimit -n {}", kFewFiles, kFewFiles)};
}

Finding check_memlock() {
  rlimit limit = {};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  return {Level::kOk, "memlock",
          limit_text(limit.rlim_cur) + " bytes; the host device locks no memory"};
}

Finding check_address_space() {
  rlimit limit = {};
  getrlimit(RLIMIT_AS, &limit);
  if (limit.rlim_cur == RLIM_INFINITY) return {Level::kOk, "address space", "unlimited"};
  return {Level::kWarn, "address space",
          fmt::format("{:.1f} GiB; segments reserve more than they use: ulimit -v unlimited, or a "
                      "smaller ZBCCL_POOL_RESERVE",
                      static_cast<double>(limit.rlim_cur) / kGiB)};
}

// Memory of segments counts as shared memory of the control group, not as a file in /dev/shm.
Finding check_memory() {
  const double bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  std::string text = fmt::format("{:.1f} GiB in the machine", bytes / kGiB);
  std::ifstream file("/sys/fs/cgroup/memory.max");
  std::string most;
  if (file >> most && most != "max") {
    text += fmt::format(", {:.1f} GiB for this control group",
                        std::strtod(most.c_str(), nullptr) / kGiB);
  }
  return {Level::kOk, "memory", text + "; /dev/shm is not used"};
}

// Cores that the control group's quota amounts to.
std::optional<double> quota_cores() {
  std::string quota;
  double period = 0;
  if (std::ifstream file("/sys/fs/cgroup/cpu.max"); file >> quota >> period) {
    if (quota == "max" || period <= 0) return std::nullopt;
    return std::strtod(quota.c_str(), nullptr) / period;
  }
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double microseconds = 0;
  if (quota_file >> microseconds && period_file >> period && microseconds > 0 && period > 0) {
    return microseconds / period;
  }
  return std::nullopt;
}

Finding check_cores() {
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  const auto usable = static_cast<double>(topology::usable_cpus().size());
  const auto quota = quota_cores();
  std::string text = fmt::format("{:g} of {} logical processors", usable, online);
  if (!quota) return {Level::kOk, "cores", text + " may be used, without a quota"};
  text += fmt::format(" may be used, with a quota of {:.2f} cores", *quota);
  if (*quota >= usable) return {Level::kOk, "cores", text};
  return {Level::kWarn, "cores",
          text +
              "; more ranks than that sleep instead of spinning. Raise the quota (docker --cpus), "
              "or set the affinity to as many cores"};
}

}  // namespace

std::vector<Finding> check_limits() {
  return {check_files(), check_memlock(), check_address_space(), check_memory(), check_cores()};
}

}  // namespace zbccl::tools
