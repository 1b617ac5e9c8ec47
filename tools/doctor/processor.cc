#include <fmt/core.h>

#include <fstream>

#include "doctor/checks.h"
#include "topology/detect.h"

namespace zbccl::tools {
namespace {

using Level = Finding::Level;

Finding check_instructions() {
  const char* const subject = "SIMD";
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) {
    return {Level::kOk, subject, "AVX-512"};
  }
  if (__builtin_cpu_supports("avx2")) return {Level::kOk, subject, "AVX2"};
  return {Level::kWarn, subject, "neither AVX2 nor AVX-512: reductions are slow on this processor"};
#elif defined(__aarch64__)
  return {Level::kOk, subject, "NEON"};
#else
  return {Level::kWarn, subject, "no vector instructions are known for this processor"};
#endif
}

// The mode for shared memory, which segments are; the one in brackets counts.
Finding check_huge_pages() {
  const char* const subject = "transparent huge pages";
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string line;
  if (!std::getline(file, line)) return {Level::kOk, subject, "not in this kernel"};
  const size_t begin = line.find('[');
  const size_t end = line.find(']');
  const std::string mode =
      begin < end && end != std::string::npos ? line.substr(begin + 1, end - begin - 1) : line;
  if (mode == "never" || mode == "deny") {
    return {Level::kOk, subject,
            mode +
                " for shared memory; large messages gain from them: as root, echo advise > "
                "/sys/kernel/mm/transparent_hugepage/shmem_enabled"};
  }
  return {Level::kOk, subject, mode + " for shared memory"};
}

Finding check_numa() {
  const auto machine = topology::detect();
  if (!machine.ok()) return {Level::kWarn, "NUMA", machine.status().message()};
  const size_t nodes = machine->numa_nodes.size();
  if (nodes <= 1) return {Level::kOk, "NUMA", "one node"};
  return {Level::kOk, "NUMA",
          fmt::format("{} nodes; zbccl run --bind core keeps each rank on one of them", nodes)};
}

}  // namespace

std::vector<Finding> check_processor() {
  return {check_instructions(), check_numa(), check_huge_pages()};
}

}  // namespace zbccl::tools
