#include "real.h"

#include <dlfcn.h>
#include <fmt/core.h>
#include <link.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <vector>

#include "error.h"
#include "settings.h"

namespace zbccl::nccl {
namespace {

constexpr const char* kName = "libnccl.so.2";

// Its calls of itself must not come here, which DEEPBIND sees to; sanitizers refuse that.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kHow = RTLD_NOW | RTLD_LOCAL;
#else
constexpr int kHow = RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#endif

struct Found {
  std::unique_ptr<Real> table;
  std::string why;  // there is none
};

bool is_this_library(void* library) {
  return dlsym(library, "ncclAllReduce") == reinterpret_cast<void*>(&pncclAllReduce) ||
         dlsym(library, "pncclAllReduce") == reinterpret_cast<void*>(&pncclAllReduce);
}

template <typename Function>
bool find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

std::unique_ptr<Real> read(void* library, std::string* why) {
  auto table = std::make_unique<Real>();
  const char* missing = nullptr;
#define ZBCCL_NCCL_FIND(name) \
  if (!find(library, #name, &table->name) && missing == nullptr) missing = #name;
  ZBCCL_NCCL_REAL_FUNCTIONS(ZBCCL_NCCL_FIND)
#undef ZBCCL_NCCL_FIND
#define ZBCCL_NCCL_FIND(name) find(library, #name, &table->name);
  ZBCCL_NCCL_REAL_OPTIONAL(ZBCCL_NCCL_FIND)
#undef ZBCCL_NCCL_FIND
  if (missing == nullptr) return table;
  *why = fmt::format("it has no {}", missing);
  return nullptr;
}

// Null, and why, if it cannot be loaded or is this library.
std::unique_ptr<Real> load(const std::string& path, std::string* why) {
  void* const library = dlopen(path.c_str(), kHow);
  if (library == nullptr) {
    const char* const text = dlerror();
    *why = text != nullptr ? text : "it cannot be loaded";
    return nullptr;
  }
  if (is_this_library(library)) {
    *why = fmt::format("{} is zbccl's own", path);
    dlclose(library);
    return nullptr;
  }
  return read(library, why);  // stays loaded
}

// Paths under which the process has one by NCCL's name.
std::vector<std::string> loaded_paths() {
  std::vector<std::string> paths;
  const auto look = [](dl_phdr_info* info, size_t, void* out) {
    const std::string path = info->dlpi_name != nullptr ? info->dlpi_name : "";
    if (path.substr(path.find_last_of('/') + 1).starts_with("libnccl.so")) {
      static_cast<std::vector<std::string>*>(out)->push_back(path);
    }
    return 0;
  };
  dl_iterate_phdr(look, &paths);
  return paths;
}

// Asking the loader for the name alone would find this library, which bears it.
std::vector<std::string> places() {
  std::vector<std::string> paths = loaded_paths();
  const char* const set = std::getenv("LD_LIBRARY_PATH");
  std::string folders = set != nullptr ? set : "";
  folders +=
      ":/usr/local/lib:/usr/lib/x86_64-linux-gnu:/usr/lib/aarch64-linux-gnu:/usr/lib64:/usr/lib";
  for (size_t begin = 0; begin <= folders.size();) {
    const size_t end = std::min(folders.find(':', begin), folders.size());
    const std::string folder = folders.substr(begin, end - begin);
    begin = end + 1;
    std::error_code error;
    const std::string path = folder + "/" + kName;
    if (!folder.empty() && std::filesystem::exists(path, error)) paths.push_back(path);
  }
  return paths;
}

Found search() {
  Found found;
  if (const std::string named = variable("ZBCCL_NCCL_LIBRARY"); !named.empty()) {
    found.table = load(named, &found.why);
    if (found.table == nullptr) found.why = fmt::format("ZBCCL_NCCL_LIBRARY: {}", found.why);
    return found;
  }
  for (const std::string& path : places()) {
    found.table = load(path, &found.why);
    if (found.table != nullptr) return found;
  }
  found.why = "none was found; name one in ZBCCL_NCCL_LIBRARY";
  return found;
}

}  // namespace

ncclResult_t find_real(const char* asker, const Real** real) {
  static const Found& found = *new Found(search());  // as long as the process
  if (found.table == nullptr) {
    return fail(ncclInvalidUsage, "{}: zbccl does not do this itself and needs NVIDIA's {}: {}",
                asker, kName, found.why);
  }
  *real = found.table.get();
  return ncclSuccess;
}

bool real_is_named() {
  static const bool named = !variable("ZBCCL_NCCL_LIBRARY").empty();
  return named;
}

}  // namespace zbccl::nccl
