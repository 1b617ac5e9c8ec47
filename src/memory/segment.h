// A range of host memory that other processes can map: a memfd, mapped once over its whole reserve
// and grown by ftruncate, so that peers never have to map again. Not thread-safe, but base() and
// reserved() never change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/fd.h"
#include "base/status.h"

namespace zbccl::memory {

class Segment {
 public:
  // Reserves `reserve` bytes of address space (rounded up to pages); no memory is taken before it
  // is touched.
  static Result<std::unique_ptr<Segment>> create(size_t reserve);

  std::byte* base() const { return mapping_.base(); }
  size_t reserved() const { return mapping_.size(); }
  size_t committed() const { return committed_; }
  int fd() const { return fd_.get(); }

  // Makes [0, bytes) usable, here and for every peer. Never shrinks.
  Status grow(size_t bytes);
  // Gives the pages wholly inside [offset, offset + bytes) back to the system; they read as zero
  // afterwards.
  void release(size_t offset, size_t bytes);
  // Physical memory behind the segment now.
  size_t resident() const;

 private:
  Segment(UniqueFd fd, Mapping mapping) : fd_(std::move(fd)), mapping_(std::move(mapping)) {}

  UniqueFd fd_;
  Mapping mapping_;
  size_t committed_ = 0;
};

// Maps a peer's segment over its whole reserve.
Result<Mapping> map_segment(int fd, size_t reserve);

}  // namespace zbccl::memory
