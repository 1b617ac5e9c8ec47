#include "observe/counters.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "base/thread_local.h"

namespace zbccl::observe {
namespace {

struct alignas(128) Slot {  // apart, so that threads do not share cache lines
  Traffic traffic;
};

struct Slots {
  std::mutex mutex;
  std::vector<std::unique_ptr<Slot>> all;
  std::vector<Slot*> spare;
};

Slots& slots() {
  static Slots* const it = new Slots;  // outlives every thread
  return *it;
}

// The thread's slot, given back at its end.
struct Owner {
  Slot* slot;
  Owner() {
    Slots& s = slots();
    const std::lock_guard lock(s.mutex);
    if (s.spare.empty()) {
      s.all.push_back(std::make_unique<Slot>());
      s.spare.push_back(s.all.back().get());
    }
    slot = s.spare.back();
    s.spare.pop_back();
  }
  ~Owner() {
    Slots& s = slots();
    const std::lock_guard lock(s.mutex);
    s.spare.push_back(slot);
  }
};

// Found without a call or a guard: this is on the way of the smallest operations.
ZBCCL_FAST_THREAD_LOCAL thread_local Traffic* current = nullptr;

Traffic& claim() {
  thread_local Owner owner;
  current = &owner.slot->traffic;
  return *current;
}

}  // namespace

Traffic& thread_traffic() { return current != nullptr ? *current : claim(); }

Totals process_totals() {
  Totals totals;
  Slots& s = slots();
  const std::lock_guard lock(s.mutex);
  for (const auto& slot : s.all) {
    totals.staged += slot->traffic.staged.get();
    totals.landing += slot->traffic.landing.get();
    totals.attached += slot->traffic.attached.get();
    totals.direct_calls += slot->traffic.direct_calls.get();
    totals.staged_calls += slot->traffic.staged_calls.get();
  }
  return totals;
}

}  // namespace zbccl::observe
