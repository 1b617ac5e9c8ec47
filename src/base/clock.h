// Monotonic time and deadlines. Values; any thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace zbccl {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

class Deadline {
 public:
  // So far away that the clock cannot tell it is never.
  static Deadline after(Milliseconds time) {
    const auto now = Clock::now();
    if (time > std::chrono::duration_cast<Milliseconds>(Clock::time_point::max() - now)) {
      return never();
    }
    return Deadline(now + std::max(time, Milliseconds(0)));
  }
  static Deadline never() { return Deadline(Clock::time_point::max()); }

  bool passed() const { return Clock::now() >= at_; }
  Clock::time_point at() const { return at_; }
  // Never negative; one day at most, so that it fits every system call.
  Milliseconds left() const {
    const auto now = Clock::now();
    if (now >= at_) return Milliseconds(0);
    if (at_ - now > std::chrono::hours(24)) return std::chrono::hours(24);
    return std::max(Milliseconds(1), std::chrono::duration_cast<Milliseconds>(at_ - now));
  }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

}  // namespace zbccl
