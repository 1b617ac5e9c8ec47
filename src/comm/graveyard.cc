#include "comm/graveyard.h"

#include <algorithm>
#include <mutex>

#include "base/fork_guard.h"
#include "memory/pool.h"

namespace zbccl::comm {
namespace {

struct Yard {
  std::mutex mutex;
  std::vector<Grave> graves;
  uint32_t generation = fork_generation();
};

Yard& yard() {
  static std::atomic<Yard*> current{new Yard};
  Yard* it = current.load();
  if (it->generation != fork_generation()) {  // a parent's graves are not the child's
    auto* fresh = new Yard;
    if (current.compare_exchange_strong(it, fresh)) it = fresh;
  }
  return *it;
}

bool unused(const Grave& grave) {
  const int nranks = static_cast<int>(grave.processes.size());
  for (int r = 0; r < nranks; ++r) {
    if (r == grave.rank) continue;
    // Acquire: what the peer did before it left is over.
    if (grave.block->left(r, nranks).load(std::memory_order_acquire) != 0) continue;
    if (!grave.processes[static_cast<size_t>(r)]->dead()) return false;
  }
  return true;
}

}  // namespace

void bury(Grave grave) {
  Yard& y = yard();
  const std::lock_guard lock(y.mutex);
  y.graves.push_back(std::move(grave));
}

bool reap() {
  Yard& y = yard();
  const std::lock_guard lock(y.mutex);
  const auto end = std::partition(y.graves.begin(), y.graves.end(),
                                  [](const Grave& grave) { return !unused(grave); });
  for (auto it = end; it != y.graves.end(); ++it) {
    (void)memory::Pool::process().free(it->block);
    (void)memory::Pool::process().free(it->outbox);
  }
  y.graves.erase(end, y.graves.end());
  return y.graves.empty();
}

}  // namespace zbccl::comm
