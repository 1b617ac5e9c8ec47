// libhwloc, opened at run time: no program of ours needs it in order to start. Any thread.
#pragma once

#include <hwloc.h>

#include "base/status.h"

namespace zbccl::topology {

// The functions that detection uses, under hwloc's own names without the prefix.
struct HwlocLibrary {
  decltype(&hwloc_get_api_version) get_api_version = nullptr;
  decltype(&hwloc_topology_init) topology_init = nullptr;
  decltype(&hwloc_topology_set_synthetic) topology_set_synthetic = nullptr;
  decltype(&hwloc_topology_load) topology_load = nullptr;
  decltype(&hwloc_topology_destroy) topology_destroy = nullptr;
  decltype(&hwloc_topology_get_depth) topology_get_depth = nullptr;
  decltype(&hwloc_get_depth_type) get_depth_type = nullptr;
  decltype(&hwloc_get_nbobjs_by_depth) get_nbobjs_by_depth = nullptr;
  decltype(&hwloc_get_obj_by_depth) get_obj_by_depth = nullptr;
  decltype(&hwloc_bitmap_next) bitmap_next = nullptr;
};

// Loads the library on the first call and keeps it.
Result<HwlocLibrary> hwloc_library();

}  // namespace zbccl::topology
