// Cross-memory attach: copying straight from another process's ordinary memory, where the system
// allows it. There is no way to write: a store could come after that process has given up on this
// one and uses the memory for something else. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/status.h"

namespace zbccl::memory {

// Copies `bytes` from `address` in process `pid` to `dst`. ESRCH is kRemoteFailed.
Status attach_read(int pid, void* dst, uint64_t address, size_t bytes);

struct AttachedPiece {
  void* dst = nullptr;
  uint64_t address = 0;
  size_t bytes = 0;
};
// The same for many pieces, up to IOV_MAX of them with one call of the system.
Status attach_read(int pid, std::span<const AttachedPiece> pieces);

// True if this process can read `expected` at `address` in process `pid`: the system allows it and
// the pid is the right one.
bool attach_probe(int pid, uint64_t address, uint64_t expected);

}  // namespace zbccl::memory
