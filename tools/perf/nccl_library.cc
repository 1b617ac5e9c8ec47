#include "perf/nccl_library.h"

#include <dlfcn.h>
#include <fmt/core.h>
#include <glob.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <utility>
#include <vector>

#include "command.h"

namespace zbccl::tools {
namespace {

constexpr const char* kName = "libnccl.so.2";

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

// Where the first Python in PATH, and what its name leads to, may keep packages. An environment's
// python3 is a link to another one, whose packages are not the environment's.
std::vector<std::string> python_prefixes() {
  constexpr int kMostLinks = 8;
  std::vector<std::string> prefixes;
  const std::string path = variable("PATH");
  for (size_t begin = 0; begin <= path.size() && prefixes.empty();) {
    const size_t end = std::min(path.find(':', begin), path.size());
    std::filesystem::path python = path.substr(begin, end - begin) + "/python3";
    std::error_code error;
    for (int i = 0; i < kMostLinks && std::filesystem::exists(python, error); ++i) {
      prefixes.push_back(python.parent_path().parent_path());
      const std::filesystem::path target = std::filesystem::read_symlink(python, error);
      if (error) break;
      python = (python.parent_path() / target).lexically_normal();
    }
    begin = end + 1;
  }
  return prefixes;
}

// The newest of what matches, by name; "" for nothing.
std::string last_match(const std::string& pattern) {
  glob_t found = {};
  std::string path;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0 && found.gl_pathc > 0) {
    path = found.gl_pathv[found.gl_pathc - 1];
  }
  globfree(&found);
  return path;
}

std::vector<std::string> python_folders() {
  std::vector<std::string> prefixes = {variable("VIRTUAL_ENV"), variable("CONDA_PREFIX")};
  for (std::string& prefix : python_prefixes()) prefixes.push_back(std::move(prefix));
  for (const char* usual : {"/usr/local", "/usr"}) prefixes.emplace_back(usual);
  if (const std::string home = variable("HOME"); !home.empty())
    prefixes.push_back(home + "/.local");
  std::vector<std::string> folders;
  for (const std::string& prefix : prefixes) {
    if (prefix.empty()) continue;
    for (const char* packages : {"site-packages", "dist-packages"}) {
      folders.push_back(fmt::format("{}/lib/python3*/{}", prefix, packages));
    }
  }
  return folders;
}

template <typename Function>
void find(void* module, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(module, name));
  if (function == nullptr) {
    throw UsageError(fmt::format("--compare nccl: the library has no {}; expected NCCL 2", name));
  }
}

NcclLibrary open(const std::string& path) {
  // NCCL's symbols stay its own, and the module is never closed: its threads live on.
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) {
    const char* why = dlerror();
    throw UsageError(fmt::format(
        "--compare nccl: {} cannot be loaded ({}); give its path by --nccl-lib or ZBCCL_NCCL_LIB. "
        "PyTorch brings it as nvidia/nccl/lib/{} among its Python packages.",
        path, why != nullptr ? why : "unknown reason", kName));
  }
  NcclLibrary library;
  library.path = path;
  find(module, "ncclGetUniqueId", library.get_unique_id);
  find(module, "ncclCommInitRank", library.comm_init_rank);
  find(module, "ncclCommDestroy", library.comm_destroy);
  find(module, "ncclCommAbort", library.comm_abort);
  find(module, "ncclAllReduce", library.all_reduce);
  find(module, "ncclReduce", library.reduce);
  find(module, "ncclBroadcast", library.broadcast);
  find(module, "ncclAllGather", library.all_gather);
  find(module, "ncclReduceScatter", library.reduce_scatter);
  library.all_to_all =
      reinterpret_cast<decltype(library.all_to_all)>(dlsym(module, "ncclAlltoAll"));
  find(module, "ncclSend", library.send);
  find(module, "ncclRecv", library.recv);
  find(module, "ncclGroupStart", library.group_start);
  find(module, "ncclGroupEnd", library.group_end);
  find(module, "ncclGetErrorString", library.error_string);
  find(module, "ncclGetLastError", library.last_error);
  int (*get_version)(int*) = nullptr;
  find(module, "ncclGetVersion", get_version);
  int version = 0;
  library.check(get_version(&version), "ncclGetVersion");
  library.version = fmt::format("{}.{}.{}", version / 10'000, version / 100 % 100, version % 100);
  return library;
}

}  // namespace

void NcclLibrary::check(int result, const char* what, NcclComm comm) const {
  if (result == 0) return;
  const char* more = last_error(comm);
  throw std::runtime_error(fmt::format("NCCL {}: {}: {} ({})", version, what, error_string(result),
                                       more != nullptr ? more : ""));
}

std::string find_nccl(const std::string& path) {
  if (!path.empty()) return path;
  if (const std::string named = variable("ZBCCL_NCCL_LIB"); !named.empty()) return named;
  for (const std::string& folder : python_folders()) {
    const std::string found = last_match(folder + "/nvidia/nccl/lib/" + kName);
    if (!found.empty()) return found;
  }
  return kName;
}

const NcclLibrary& load_nccl(const std::string& path) {
  static std::mutex mutex;
  static const NcclLibrary* library = nullptr;
  const std::lock_guard lock(mutex);
  if (library == nullptr) library = new NcclLibrary(open(find_nccl(path)));
  return *library;
}

}  // namespace zbccl::tools
