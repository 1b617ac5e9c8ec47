#include "base/fork_guard.h"

#include <pthread.h>

#include <atomic>

namespace zbccl {
namespace {

std::atomic<uint32_t> generation{0};

struct Installer {
  Installer() {
    pthread_atfork(nullptr, nullptr, [] { generation.fetch_add(1, std::memory_order_relaxed); });
  }
};
const Installer installer;

}  // namespace

uint32_t fork_generation() { return generation.load(std::memory_order_relaxed); }

}  // namespace zbccl
