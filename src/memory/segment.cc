#include "memory/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>

namespace zbccl::memory {
namespace {

constexpr size_t kPage = 4096;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Result<Mapping> map_segment(int fd, size_t reserve) {
  void* base = mmap(nullptr, reserve, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (base == MAP_FAILED) {
    return system_error(format("cannot reserve {} bytes of address space for a segment", reserve),
                        errno);
  }
  return Mapping(base, reserve);
}

Result<std::unique_ptr<Segment>> Segment::create(size_t reserve) {
  UniqueFd fd(memfd_create("zbccl", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return system_error("memfd_create", errno);
  // Peers rely on the file never shrinking under their mapping.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) != 0)
    return system_error("cannot seal a memfd", errno);
  ZBCCL_ASSIGN_OR_RETURN(Mapping mapping, map_segment(fd.get(), round_up(reserve, kPage)));
  return std::unique_ptr<Segment>(new Segment(std::move(fd), std::move(mapping)));
}

Status Segment::grow(size_t bytes) {
  const size_t size = round_up(bytes, kPage);
  if (size <= committed_) return {};
  if (size > reserved()) {
    return error(Code::kOutOfMemory, "a segment of {} reserved bytes cannot grow to {}", reserved(),
                 size);
  }
  if (ftruncate(fd_.get(), static_cast<off_t>(size)) != 0) {
    return system_error(format("cannot grow a segment to {} bytes", size), errno);
  }
  committed_ = size;
  return {};
}

void Segment::release(size_t offset, size_t bytes) {
  const size_t first = round_up(offset, kPage);
  const size_t last = (offset + bytes) / kPage * kPage;
  if (first < last) {
    fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(first),
              static_cast<off_t>(last - first));
  }
}

size_t Segment::resident() const {
  struct stat info = {};
  return fstat(fd_.get(), &info) == 0 ? static_cast<size_t>(info.st_blocks) * 512 : 0;
}

}  // namespace zbccl::memory
