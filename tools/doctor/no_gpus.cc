// The command without CUDA.
#include <dlfcn.h>
#include <fmt/core.h>

#include "doctor/checks.h"

namespace zbccl::tools {
namespace {

using Level = Finding::Level;

// Only looks whether a driver is there; starts nothing on a GPU.
Finding check_driver() {
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
  return {Level::kWarn, "CUDA driver",
          fmt::format("for CUDA {}.{}; this build has the host device only: build it again where "
                      "nvcc is found, with -DZBCCL_CUDA=ON",
                      version / 1000, version % 1000 / 10)};
}

}  // namespace

std::vector<Finding> check_gpus() { return {check_driver()}; }

}  // namespace zbccl::tools
