#include "measure/binding.h"

#include <sched.h>

#include <functional>
#include <string>

#include "topology/machine.h"

namespace zbccl::tools {

void bind_to_core(Communicator& comm) {
  const topology::Cpus cpus = topology::usable_cpus();
  const uint64_t mine = std::hash<std::string>()(topology::text_of(cpus));
  Buffer<uint64_t> extremes(2);
  extremes[0] = mine;
  extremes[1] = ~mine;
  comm.all_reduce(extremes.span(), zbcclMax);
  const bool same = extremes[0] == mine && extremes[1] == ~mine;
  const auto ranks = static_cast<size_t>(comm.size());
  if (!same || cpus.size() < ranks) return;
  const int cpu = cpus[static_cast<size_t>(comm.rank()) * cpus.size() / ranks];
  if (cpu >= CPU_SETSIZE) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  // Where it is refused, the rank runs wherever it would.
  (void)sched_setaffinity(0, sizeof set, &set);
}

}  // namespace zbccl::tools
