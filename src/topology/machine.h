// What a machine is made of, as far as communication between its ranks is concerned. Plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zbccl::topology {

// Operating-system numbers of logical processors, ascending.
using Cpus = std::vector<int>;

bool contains(const Cpus& set, int cpu);
bool intersects(const Cpus& a, const Cpus& b);
Cpus intersection(const Cpus& a, const Cpus& b);
// "0-3,8"; "none" for an empty set.
std::string text_of(const Cpus& cpus);
// The logical processors that the calling thread may run on.
Cpus usable_cpus();
// How many of them the process may keep busy at once, which its control group may limit further; at
// least 1. Ranks that are more than that share cores.
int available_cores();

struct Package {
  int index = 0;
  std::string model;  // "" where the system does not tell
  Cpus cpus;
};

struct NumaNode {
  int index = 0;  // the system's number
  uint64_t bytes = 0;
  Cpus cpus;
};

struct Cache {
  int level = 0;
  char kind = 'u';  // u: unified, d: data, i: instructions
  int index = 0;    // among the caches of its level and kind
  uint64_t bytes = 0;
  unsigned line_bytes = 0;
  Cpus cpus;

  std::string name() const;  // "L1d", "L2", ...
};

struct Core {
  int index = 0;
  Cpus cpus;
};

struct Machine {
  std::vector<Package> packages;
  std::vector<NumaNode> numa_nodes;
  std::vector<Cache> caches;  // by level, largest first, then by index
  std::vector<Core> cores;
  Cpus cpus;
};

// The part of the machine that `cpus` reaches: what holds none of them is left out, the rest keeps
// its size and index.
Machine restrict_to(const Machine& machine, const Cpus& cpus);

}  // namespace zbccl::topology
