// Cross-memory attach: copying straight between this process and another one's ordinary memory,
// where the system allows it. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace zbccl::memory {

// Copies `bytes` from `address` in process `pid` to `dst`. ESRCH is kRemoteFailed.
Status attach_read(int pid, void* dst, uint64_t address, size_t bytes);
// Copies `bytes` from `src` to `address` in process `pid`.
Status attach_write(int pid, uint64_t address, const void* src, size_t bytes);

// True if this process can read `expected` at `address` in process `pid`: the system allows it and
// the pid is the right one.
bool attach_probe(int pid, uint64_t address, uint64_t expected);

}  // namespace zbccl::memory
