// Sleeping on a 32-bit word that other processes share. Any thread.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <ctime>

#include "base/clock.h"

namespace zbccl {

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

// Sleeps while *word == expected, at most `limit`; may return early. Not private to the process:
// the word may lie in shared memory.
inline void futex_wait(const std::atomic<uint32_t>& word, uint32_t expected, Milliseconds limit) {
  const timespec time = {static_cast<time_t>(limit.count() / 1000),
                         static_cast<long>(limit.count() % 1000 * 1'000'000)};
  syscall(SYS_futex, &word, FUTEX_WAIT, expected, &time, nullptr, 0);
}

inline void futex_wake_all(const std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace zbccl
