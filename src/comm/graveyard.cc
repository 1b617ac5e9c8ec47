#include "comm/graveyard.h"

#include <algorithm>
#include <mutex>
#include <system_error>

#include "base/fork_guard.h"
#include "base/thread.h"
#include "memory/pool.h"

namespace zbccl::comm {
namespace {

struct Yard {
  std::mutex mutex;
  std::vector<Grave> graves;
  bool watched = false;  // a thread reaps
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

// The yard's mutex is held.
bool reap(Yard& y) {
  const auto end = std::partition(y.graves.begin(), y.graves.end(),
                                  [](const Grave& grave) { return !unused(grave); });
  for (auto it = end; it != y.graves.end(); ++it) {
    (void)memory::Pool::process().free(it->block);
    (void)memory::Pool::process().free(it->outbox);
    if (it->free_device) it->free_device();
  }
  y.graves.erase(end, y.graves.end());
  return y.graves.empty();
}

// Peers that leave wake nobody up, so this looks now and then.
void watch(Yard& y) {
  for (Milliseconds pause(5);; pause = std::min(2 * pause, Milliseconds(200))) {
    std::this_thread::sleep_for(pause);
    const std::lock_guard lock(y.mutex);
    if (!reap(y)) continue;
    y.watched = false;
    return;
  }
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
  return reap(y);
}

void reap_later() {
  Yard& y = yard();
  const std::lock_guard lock(y.mutex);
  if (y.graves.empty() || y.watched) return;
  try {
    // Nobody has to wait for it: the yard and the pool last as long as the process.
    start_thread("zbccl-reaper", [&y] { watch(y); }).detach();
    y.watched = true;
  } catch (const std::system_error&) {
    // The process has no thread to spare; the next communicator's making or end reaps.
  }
}

}  // namespace zbccl::comm
