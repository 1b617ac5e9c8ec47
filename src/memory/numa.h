// Where the memory of a segment should lie on a machine with several NUMA nodes. Any thread.
#pragma once

#include <cstddef>
#include <string>

#include "base/cpu.h"
#include "base/status.h"

namespace zbccl::memory {

// The node that all of `cpus` belong to, as the folder of nodes in sysfs tells; -1 where they
// belong to several, or the machine has only one.
int home_node(const CpuSet& cpus, const std::string& nodes = "/sys/devices/system/node");

// Asks the system to put pages of [address, address + bytes) on `node` while it has room, whoever
// touches them first: of a shared mapping this holds for every process.
Status prefer_node(void* address, size_t bytes, int node);

}  // namespace zbccl::memory
