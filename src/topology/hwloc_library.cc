#include "topology/hwloc_library.h"

#include <dlfcn.h>

namespace zbccl::topology {
namespace {

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

Result<HwlocLibrary> load() {
  // Never closed: hwloc's plugins may outlive a topology.
  void* library = dlopen("libhwloc.so.15", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* why = dlerror();
    return error(Code::kUnsupported,
                 "the machine's topology needs libhwloc.so.15 ({}); install the package libhwloc15",
                 why != nullptr ? why : "cannot be loaded");
  }
  HwlocLibrary hwloc;
  const bool complete =
      find(library, "hwloc_get_api_version", hwloc.get_api_version) &&
      find(library, "hwloc_topology_init", hwloc.topology_init) &&
      find(library, "hwloc_topology_set_synthetic", hwloc.topology_set_synthetic) &&
      find(library, "hwloc_topology_load", hwloc.topology_load) &&
      find(library, "hwloc_topology_destroy", hwloc.topology_destroy) &&
      find(library, "hwloc_topology_get_depth", hwloc.topology_get_depth) &&
      find(library, "hwloc_get_depth_type", hwloc.get_depth_type) &&
      find(library, "hwloc_get_nbobjs_by_depth", hwloc.get_nbobjs_by_depth) &&
      find(library, "hwloc_get_obj_by_depth", hwloc.get_obj_by_depth) &&
      find(library, "hwloc_bitmap_next", hwloc.bitmap_next);
  // The layout of an object is fixed within one major version.
  if (!complete || hwloc.get_api_version() >> 16 != HWLOC_API_VERSION >> 16) {
    return error(Code::kUnsupported,
                 "libhwloc.so.15 is not of the major version {} that this build knows; install "
                 "the matching package libhwloc15 or rebuild",
                 HWLOC_API_VERSION >> 16);
  }
  return hwloc;
}

}  // namespace

Result<HwlocLibrary> hwloc_library() {
  static const Result<HwlocLibrary> library = load();
  return library;
}

}  // namespace zbccl::topology
