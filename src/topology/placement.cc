#include "topology/placement.h"

#include <algorithm>

#include "base/format.h"

namespace zbccl::topology {
namespace {

// One part of the machine in the order of size.
struct Part {
  std::string kind;
  int index;
  const Cpus* cpus;
};

std::vector<Part> parts_of(const Machine& machine) {
  std::vector<Part> parts;
  parts.reserve(machine.packages.size() + machine.numa_nodes.size() + machine.caches.size() +
                machine.cores.size());
  for (const Package& package : machine.packages) {
    parts.push_back({"package", package.index, &package.cpus});
  }
  for (const NumaNode& node : machine.numa_nodes) {
    parts.push_back({"NUMA node", node.index, &node.cpus});
  }
  for (const Cache& cache : machine.caches) {
    if (cache.kind != 'i') parts.push_back({cache.name(), cache.index, &cache.cpus});
  }
  for (const Core& core : machine.cores) parts.push_back({"core", core.index, &core.cpus});
  return parts;
}

bool holds(const Part& part, const Placement& placement) {
  return !placement.cpus.empty() && contains(*part.cpus, placement.cpus.front());
}

}  // namespace

std::vector<Placement> place(const Machine& machine, int ranks) {
  std::vector<Placement> placements;
  const size_t cores = machine.cores.size();
  if (cores == 0 || ranks <= 0) return placements;
  placements.reserve(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    const size_t core = static_cast<size_t>(rank) * cores / static_cast<size_t>(ranks);
    placements.push_back({rank, static_cast<int>(core), machine.cores[core].cpus});
  }
  return placements;
}

std::vector<Shared> shared_parts(const Machine& machine, const std::vector<Placement>& placements) {
  std::vector<Shared> shared;
  for (const Part& part : parts_of(machine)) {
    Shared entry{zbccl::format("{} {}", part.kind, part.index), {}};
    for (const Placement& placement : placements) {
      if (holds(part, placement)) entry.ranks.push_back(placement.rank);
    }
    if (entry.ranks.size() >= 2) shared.push_back(std::move(entry));
  }
  return shared;
}

std::string nearest_shared(const Machine& machine, const Placement& a, const Placement& b) {
  std::string nearest = "machine";
  for (const Part& part : parts_of(machine)) {
    if (holds(part, a) && holds(part, b)) nearest = part.kind;
  }
  return nearest;
}

}  // namespace zbccl::topology
