#include "memory/numa.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <sstream>
#include <vector>

namespace zbccl::memory {
namespace {

// "0-3,8": the numbers listed; empty where the file cannot be read or holds anything else.
std::vector<int> read_list(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  if (!(file >> text)) return {};
  std::vector<int> numbers;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    std::istringstream range(part);
    int first = 0;
    int last = 0;
    char dash = 0;
    if (!(range >> first)) return {};
    if (!(range >> dash)) {
      last = first;
    } else if (dash != '-' || !(range >> last)) {
      return {};
    }
    constexpr int kMost = 1 << 16;
    if (first < 0 || last < first || last > kMost) return {};
    for (int number = first; number <= last; ++number) numbers.push_back(number);
  }
  return numbers;
}

bool contains(const CpuSet& set, int cpu) {
  const auto word = static_cast<size_t>(cpu) / 64;
  return word < set.size() && (set[word] >> (static_cast<size_t>(cpu) % 64) & 1) != 0;
}

}  // namespace

int home_node(const CpuSet& cpus, const std::string& nodes) {
  const std::vector<int> online = read_list(nodes + "/online");
  if (online.size() < 2) return -1;
  int home = -1;
  for (const int node : online) {
    bool ours = false;
    for (const int cpu : read_list(format("{}/node{}/cpulist", nodes, node))) {
      ours = ours || contains(cpus, cpu);
    }
    if (!ours) continue;
    if (home >= 0) return -1;
    home = node;
  }
  return home;
}

Status prefer_node(void* address, size_t bytes, int node) {
  constexpr int kPreferred = 1;  // MPOL_PREFERRED
  constexpr size_t kWordBits = 8 * sizeof(unsigned long);
  std::array<unsigned long, 16> mask{};
  const auto bit = static_cast<size_t>(node);
  if (node < 0 || bit >= mask.size() * kWordBits) {
    return error(Code::kInvalidArgument, "{} is not a NUMA node", node);
  }
  mask[bit / kWordBits] |= 1UL << (bit % kWordBits);
  // The kernel leaves the last bit of the mask out of account.
  if (syscall(SYS_mbind, address, bytes, kPreferred, mask.data(), mask.size() * kWordBits, 0) ==
      0) {
    return {};
  }
  return system_error(format("memory cannot be placed on NUMA node {}", node), errno);
}

}  // namespace zbccl::memory
