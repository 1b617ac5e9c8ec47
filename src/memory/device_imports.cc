#include "memory/device_imports.h"

#include <atomic>

#include "base/fork_guard.h"

namespace zbccl::memory {
namespace {

std::atomic<DeviceImports*> instance{nullptr};
std::atomic<uint32_t> generation{0};

}  // namespace

DeviceImports* device_imports() {
  DeviceImports* const imports = instance.load(std::memory_order_acquire);
  return generation.load(std::memory_order_relaxed) == fork_generation() ? imports : nullptr;
}

void set_device_imports(DeviceImports* imports) {
  generation.store(fork_generation(), std::memory_order_relaxed);
  instance.store(imports, std::memory_order_release);
}

}  // namespace zbccl::memory
