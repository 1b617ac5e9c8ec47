#include "topology/machine.h"

#include <sched.h>

#include <algorithm>
#include <iterator>

#include "base/cpu.h"
#include "base/format.h"

namespace zbccl::topology {
namespace {

template <typename Part>
void restrict_parts(std::vector<Part>& parts, const Cpus& cpus) {
  for (Part& part : parts) part.cpus = intersection(part.cpus, cpus);
  std::erase_if(parts, [](const Part& part) { return part.cpus.empty(); });
}

}  // namespace

bool contains(const Cpus& set, int cpu) { return std::binary_search(set.begin(), set.end(), cpu); }

Cpus intersection(const Cpus& a, const Cpus& b) {
  Cpus both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return both;
}

bool intersects(const Cpus& a, const Cpus& b) { return !intersection(a, b).empty(); }

std::string text_of(const Cpus& cpus) {
  std::string text;
  for (size_t i = 0; i < cpus.size();) {
    size_t last = i;
    while (last + 1 < cpus.size() && cpus[last + 1] == cpus[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text += zbccl::format("{}", cpus[i]);
    if (last > i) text += zbccl::format("-{}", cpus[last]);
    i = last + 1;
  }
  return text.empty() ? "none" : text;
}

Cpus usable_cpus() {
  Cpus cpus;
  // The call fails while the set is smaller than the kernel's.
  for (int size = 1024; size <= 1 << 20; size *= 2) {
    cpu_set_t* set = CPU_ALLOC(size);
    if (set == nullptr) return cpus;
    const size_t bytes = CPU_ALLOC_SIZE(size);
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    for (int cpu = 0; known && cpu < size; ++cpu) {
      if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(cpu);
    }
    CPU_FREE(set);
    if (known) break;
  }
  return cpus;
}

int available_cores() {
  const int64_t quota = cpu_quota_millicores();
  auto cores = static_cast<int64_t>(usable_cpus().size());
  if (quota > 0) cores = std::min(cores, quota / 1000);
  return static_cast<int>(std::max<int64_t>(cores, 1));
}

std::string Cache::name() const {
  return zbccl::format("L{}{}", level, kind == 'u' ? "" : std::string(1, kind));
}

Machine restrict_to(const Machine& machine, const Cpus& cpus) {
  Machine part = machine;
  restrict_parts(part.packages, cpus);
  restrict_parts(part.numa_nodes, cpus);
  restrict_parts(part.caches, cpus);
  restrict_parts(part.cores, cpus);
  part.cpus = intersection(machine.cpus, cpus);
  return part;
}

}  // namespace zbccl::topology
