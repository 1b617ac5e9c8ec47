#include "measure/gloo_module.h"

#include <dlfcn.h>
#include <fmt/core.h>
#include <unistd.h>

#include "command.h"

namespace zbccl::tools {
namespace {

// Beside the library that this process runs with.
std::string module_path() {
  Dl_info library = {};
  const void* symbol = dlsym(RTLD_DEFAULT, "zbcclGetVersion");
  if (symbol == nullptr || dladdr(symbol, &library) == 0) return "zbccl_compare_gloo.so";
  const std::string path = library.dli_fname;
  return path.substr(0, path.rfind('/') + 1) + "zbccl_compare_gloo.so";
}

}  // namespace

void* gloo_symbol(const char* name) {
  const std::string path = module_path();
  if (access(path.c_str(), F_OK) != 0) {
    throw UsageError(
        "--compare gloo: this command was built without gloo. Install the package libgloo-dev "
        "(Debian, Ubuntu) and build again. PyTorch's gloo is not used by this command: where only "
        "PyTorch is there, time torch.distributed with the gloo backend instead.");
  }
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* symbol = module != nullptr ? dlsym(module, name) : nullptr;
  if (symbol == nullptr) {
    const char* why = dlerror();
    throw UsageError(
        fmt::format("--compare gloo: {} cannot be loaded ({}); install the package libgloo0", path,
                    why != nullptr ? why : "unknown reason"));
  }
  return symbol;
}

}  // namespace zbccl::tools
