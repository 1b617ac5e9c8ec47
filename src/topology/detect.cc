#include "topology/detect.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "topology/hwloc_library.h"

namespace zbccl::topology {
namespace {

class Topology {
 public:
  explicit Topology(const HwlocLibrary& hwloc) : hwloc_(hwloc) {}
  Topology(const Topology&) = delete;
  Topology& operator=(const Topology&) = delete;
  ~Topology() {
    if (handle_ != nullptr) hwloc_.topology_destroy(handle_);
  }

  // An empty description stands for this machine.
  Status load(const std::string& description) {
    if (hwloc_.topology_init(&handle_) != 0) {
      return error(Code::kOutOfMemory, "hwloc cannot create a topology");
    }
    if (!description.empty() && hwloc_.topology_set_synthetic(handle_, description.c_str()) != 0) {
      return error(Code::kInvalidArgument,
                   "\"{}\" does not describe a machine; expected hwloc's synthetic notation, e.g. "
                   "\"package:2 l3:1 core:4 pu:2\"",
                   description);
    }
    if (hwloc_.topology_load(handle_) != 0) {
      return system_error("hwloc cannot read the machine's topology", errno);
    }
    return {};
  }

  Machine read() const {
    Machine machine;
    const int depths = hwloc_.topology_get_depth(handle_);
    for (int depth = 0; depth < depths; ++depth) read_depth(depth, machine);
    read_depth(HWLOC_TYPE_DEPTH_NUMANODE, machine);
    std::stable_sort(
        machine.caches.begin(), machine.caches.end(), [](const Cache& a, const Cache& b) {
          return std::tuple(-a.level, a.kind, a.index) < std::tuple(-b.level, b.kind, b.index);
        });
    std::sort(machine.cpus.begin(), machine.cpus.end());
    return machine;
  }

 private:
  Cpus cpus_of(hwloc_obj_t object) const {
    Cpus cpus;
    for (int cpu = hwloc_.bitmap_next(object->cpuset, -1); cpu >= 0;
         cpu = hwloc_.bitmap_next(object->cpuset, cpu)) {
      cpus.push_back(cpu);
    }
    return cpus;
  }

  void read_depth(int depth, Machine& machine) const {
    const unsigned count = hwloc_.get_nbobjs_by_depth(handle_, depth);
    const hwloc_obj_type_t type = hwloc_.get_depth_type(handle_, depth);
    for (unsigned i = 0; i < count; ++i) {
      read_object(type, hwloc_.get_obj_by_depth(handle_, depth, i), machine);
    }
  }

  void read_object(hwloc_obj_type_t type, hwloc_obj_t object, Machine& machine) const {
    const int index = static_cast<int>(object->logical_index);
    if (type == HWLOC_OBJ_PACKAGE) {
      machine.packages.push_back({index, info(object, "CPUModel"), cpus_of(object)});
    } else if (type == HWLOC_OBJ_NUMANODE) {
      machine.numa_nodes.push_back({static_cast<int>(object->os_index),
                                    object->attr->numanode.local_memory, cpus_of(object)});
    } else if (type == HWLOC_OBJ_CORE) {
      machine.cores.push_back({index, cpus_of(object)});
    } else if (type == HWLOC_OBJ_PU) {
      machine.cpus.push_back(static_cast<int>(object->os_index));
    } else if (object->attr != nullptr && is_cache(type)) {
      const auto& cache = object->attr->cache;
      const char kind = cache.type == HWLOC_OBJ_CACHE_UNIFIED ? 'u'
                        : cache.type == HWLOC_OBJ_CACHE_DATA  ? 'd'
                                                              : 'i';
      machine.caches.push_back({static_cast<int>(cache.depth), kind, index, cache.size,
                                cache.linesize, cpus_of(object)});
    }
  }

  static bool is_cache(hwloc_obj_type_t type) {
    return type >= HWLOC_OBJ_L1CACHE && type <= HWLOC_OBJ_L3ICACHE;
  }

  static std::string info(hwloc_obj_t object, const char* name) {
    for (unsigned i = 0; i < object->infos_count; ++i) {
      if (std::strcmp(object->infos[i].name, name) == 0) return object->infos[i].value;
    }
    return {};
  }

  const HwlocLibrary& hwloc_;
  hwloc_topology_t handle_ = nullptr;
};

Result<Machine> read_machine(const std::string& description) {
  ZBCCL_ASSIGN_OR_RETURN(const HwlocLibrary hwloc, hwloc_library());
  Topology topology(hwloc);
  ZBCCL_RETURN_IF_ERROR(topology.load(description));
  return topology.read();
}

}  // namespace

Result<Machine> detect() { return read_machine(""); }

Result<Machine> synthetic(const std::string& description) {
  if (description.empty()) {
    return error(Code::kInvalidArgument, "an empty text does not describe a machine");
  }
  return read_machine(description);
}

Result<std::string> hwloc_version() {
  ZBCCL_ASSIGN_OR_RETURN(const HwlocLibrary hwloc, hwloc_library());
  const unsigned version = hwloc.get_api_version();
  return zbccl::format("{}.{}", version >> 16, (version >> 8) & 0xff);
}

}  // namespace zbccl::topology
