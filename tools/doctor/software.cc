#include <dlfcn.h>
#include <fmt/core.h>

#include <exception>
#include <string>
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

// Only looks whether it is there: on one machine nothing needs it.
Finding check_ucx() {
  void* library = dlopen("libucp.so.0", RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) {
    return {Level::kOk, "UCX", "none on this machine; ranks on one machine do not need it"};
  }
  std::string version = "a version that it does not tell";
  using GetVersion = void (*)(unsigned*, unsigned*, unsigned*);
  if (auto get = reinterpret_cast<GetVersion>(dlsym(library, "ucp_get_version")); get != nullptr) {
    unsigned major = 0;
    unsigned minor = 0;
    unsigned release = 0;
    get(&major, &minor, &release);
    version = fmt::format("{}.{}.{}", major, minor, release);
  }
  dlclose(library);
  return {Level::kOk, "UCX", version};
}

}  // namespace

std::vector<Finding> check_software() {
  return {check_version(), check_hwloc(), check_gloo(), check_ucx()};
}

}  // namespace zbccl::tools
