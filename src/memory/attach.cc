#include "memory/attach.h"

#include <sys/uio.h>

#include <cerrno>

#include "observe/counters.h"

namespace zbccl::memory {

Status attach_read(int pid, void* dst, uint64_t address, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const iovec here = {static_cast<std::byte*>(dst) + done, bytes - done};
    const iovec there = {reinterpret_cast<void*>(address + done), bytes - done};
    const ssize_t moved = process_vm_readv(pid, &here, 1, &there, 1, 0);
    if (moved > 0) {
      done += static_cast<size_t>(moved);
      observe::thread_traffic().attached.add(static_cast<uint64_t>(moved));
    } else if (moved < 0 && errno == ESRCH) {
      return error(Code::kRemoteFailed, "process {} is gone while its memory was read", pid);
    } else if (moved == 0 || errno != EINTR) {
      return system_error(
          format("memory of process {} at {:#x} ({} bytes) cannot be read", pid, address, bytes),
          moved == 0 ? EFAULT : errno);
    }
  }
  return {};
}

bool attach_probe(int pid, uint64_t address, uint64_t expected) {
  uint64_t seen = 0;
  return attach_read(pid, &seen, address, sizeof seen).ok() && seen == expected;
}

}  // namespace zbccl::memory
