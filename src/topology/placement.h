// Where the ranks of one machine go, and what they share there. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "topology/machine.h"

namespace zbccl::topology {

struct Placement {
  int rank = 0;
  int core = -1;  // index in Machine::cores
  Cpus cpus;      // that core's
};

// Spreads `ranks` over the cores in blocks, so that neighbours in rank are neighbours on the
// machine; several ranks share a core where there are more ranks than cores. Empty for a machine
// without cores.
std::vector<Placement> place(const Machine& machine, int ranks);

// A part of the machine, and the ranks that are placed on it.
struct Shared {
  std::string name;  // "package 0", "NUMA node 1", "L3 0", "core 2"
  std::vector<int> ranks;
};

// Every part that holds two ranks or more, from the largest to the smallest; each set of ranks
// appears once for each kind of part.
std::vector<Shared> shared_parts(const Machine& machine, const std::vector<Placement>& placements);

// The smallest kind of part that both are on: "core", "L2", "L3", "NUMA node", "package",
// "machine".
std::string nearest_shared(const Machine& machine, const Placement& a, const Placement& b);

}  // namespace zbccl::topology
