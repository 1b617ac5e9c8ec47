#include "memory/attach.h"

#include <sys/uio.h>

#include <cerrno>

#include "observe/counters.h"

namespace zbccl::memory {
namespace {

using Transfer = ssize_t (*)(pid_t, const iovec*, unsigned long, const iovec*, unsigned long,
                             unsigned long);

Status transfer(Transfer call, const char* what, int pid, void* local, uint64_t address,
                size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const iovec here = {static_cast<std::byte*>(local) + done, bytes - done};
    const iovec there = {reinterpret_cast<void*>(address + done), bytes - done};
    const ssize_t moved = call(pid, &here, 1, &there, 1, 0);
    if (moved > 0) {
      done += static_cast<size_t>(moved);
      observe::process_traffic().add_attached(static_cast<uint64_t>(moved));
    } else if (moved < 0 && errno == ESRCH) {
      return error(Code::kRemoteFailed, "process {} is gone while its memory was {}", pid, what);
    } else if (moved == 0 || errno != EINTR) {
      return system_error(format("memory of process {} at {:#x} ({} bytes) cannot be {}", pid,
                                 address, bytes, what),
                          moved == 0 ? EFAULT : errno);
    }
  }
  return {};
}

}  // namespace

Status attach_read(int pid, void* dst, uint64_t address, size_t bytes) {
  return transfer(process_vm_readv, "read", pid, dst, address, bytes);
}

Status attach_write(int pid, uint64_t address, const void* src, size_t bytes) {
  return transfer(process_vm_writev, "written", pid, const_cast<void*>(src), address, bytes);
}

bool attach_probe(int pid, uint64_t address, uint64_t expected) {
  uint64_t seen = 0;
  return attach_read(pid, &seen, address, sizeof seen).ok() && seen == expected;
}

}  // namespace zbccl::memory
