#include "bootstrap/attendances.h"

#include <algorithm>

namespace zbccl::bootstrap {
namespace {

// How much later than its deadline the answer of a server that lives may arrive.
constexpr Milliseconds kMoment(100);

}  // namespace

void Attendances::add(std::string_view name, int rank, Deadline deadline) {
  const std::lock_guard lock(mutex_);
  all_.push_back({std::string(name), rank, deadline});
}

void Attendances::remove(std::string_view name, int rank) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(all_.begin(), all_.end(), [&](const Attendance& each) {
    return each.name == name && each.rank == rank;
  });
  if (found != all_.end()) all_.erase(found);
}

bool Attendances::any() const {
  const std::lock_guard lock(mutex_);
  return !all_.empty();
}

// Several ranks of one process may attend a meeting through one client: the most patient counts.
const Attendances::Attendance* Attendances::find(std::string_view key) const {
  const Attendance* best = nullptr;
  for (const Attendance& each : all_) {
    if (!key.starts_with(each.name) || key.size() <= each.name.size()) continue;
    if (key[each.name.size()] != '/') continue;
    if (best == nullptr || each.deadline.at() > best->deadline.at()) best = &each;
  }
  return best;
}

Deadline Attendances::answer_by(std::string_view key, Deadline usual, Deadline wait) const {
  const std::lock_guard lock(mutex_);
  const Attendance* const found = find(key);
  if (found == nullptr) return usual;
  return Deadline::after(std::max(found->deadline.left(), wait.left()) + kMoment);
}

bool Attendances::over(std::string_view key) const {
  const std::lock_guard lock(mutex_);
  const Attendance* const found = find(key);
  return found != nullptr && found->deadline.passed();
}

}  // namespace zbccl::bootstrap
