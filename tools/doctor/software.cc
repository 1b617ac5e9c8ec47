#include <dlfcn.h>
#include <fmt/core.h>

#include <exception>
#include <zbccl/zbccl.hpp>

#include "doctor/checks.h"
#include "perf/compare.h"
#include "topology/detect.h"

namespace zbccl::tools {
namespace {

using Level = Finding::Level;

Finding check_version() {
  int loaded = 0;
  if (zbcclGetVersion(&loaded) != zbcclSuccess) {
    return {Level::kFail, "library", "libzbccl does not tell its version; install it again"};
  }
  const std::string text =
      fmt::format("libzbccl {}.{}.{}", loaded / 10000, loaded / 100 % 100, loaded % 100);
  if (loaded == ZBCCL_VERSION_CODE) return {Level::kOk, "library", text};
  return {Level::kFail, "library",
          fmt::format("{} is loaded by a command of version {}.{}.{}; look for an older copy in "
                      "LD_LIBRARY_PATH",
                      text, ZBCCL_MAJOR, ZBCCL_MINOR, ZBCCL_PATCH)};
}

Finding check_gloo() {
  try {
    check_comparison("gloo");
    return {Level::kOk, "gloo", "zbccl perf --compare gloo can be used"};
  } catch (const std::exception& error) {
    return {Level::kWarn, "gloo", error.what()};
  }
}

Finding check_hwloc() {
  const auto version = topology::hwloc_version();
  if (version.ok()) return {Level::kOk, "hwloc", "API " + version.value()};
  return {Level::kWarn, "hwloc", version.status().message()};
}

// Only looks whether a driver is there; starts nothing on a GPU.
Finding check_cuda() {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) {
    return {Level::kOk, "CUDA driver", "none on this machine; the host device does not need it"};
  }
  using GetVersion = int (*)(int*);
  auto get_version = reinterpret_cast<GetVersion>(dlsym(driver, "cuDriverGetVersion"));
  int version = 0;
  const bool known = get_version != nullptr && get_version(&version) == 0 && version > 0;
  dlclose(driver);
  if (!known) {
    return {Level::kWarn, "CUDA driver",
            "libcuda.so.1 is there, and does not tell its version; compare it with nvidia-smi"};
  }
  return {Level::kOk, "CUDA driver",
          fmt::format("for CUDA {}.{}; this build has the host device only", version / 1000,
                      version % 1000 / 10)};
}

}  // namespace

std::vector<Finding> check_software() {
  return {check_version(), check_hwloc(), check_gloo(), check_cuda()};
}

}  // namespace zbccl::tools
