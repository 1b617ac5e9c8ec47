#include "memory/attach.h"

#include <sys/uio.h>

#include <algorithm>
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

Status attach_read(int pid, std::span<const AttachedPiece> pieces) {
  constexpr size_t kMost = 256;  // of a call; the system takes 1024
  iovec here[kMost];
  iovec there[kMost];
  for (size_t first = 0; first < pieces.size();) {
    const size_t count = std::min(kMost, pieces.size() - first);
    for (size_t i = 0; i < count; ++i) {
      const AttachedPiece& piece = pieces[first + i];
      here[i] = {piece.dst, piece.bytes};
      there[i] = {reinterpret_cast<void*>(piece.address), piece.bytes};
    }
    ssize_t moved = process_vm_readv(pid, here, count, there, count, 0);
    if (moved > 0) observe::thread_traffic().attached.add(static_cast<uint64_t>(moved));
    // What it did not move, the end of it in the middle of a piece too, is read piece by piece,
    // which tells what is wrong.
    for (size_t i = 0; i < count; ++i, ++first) {
      const AttachedPiece& piece = pieces[first];
      const size_t done = std::min(piece.bytes, static_cast<size_t>(std::max<ssize_t>(moved, 0)));
      moved -= static_cast<ssize_t>(done);
      if (done == piece.bytes) continue;
      ZBCCL_RETURN_IF_ERROR(attach_read(pid, static_cast<std::byte*>(piece.dst) + done,
                                        piece.address + done, piece.bytes - done));
    }
  }
  return {};
}

bool attach_probe(int pid, uint64_t address, uint64_t expected) {
  uint64_t seen = 0;
  return attach_read(pid, &seen, address, sizeof seen).ok() && seen == expected;
}

}  // namespace zbccl::memory
