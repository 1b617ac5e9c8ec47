// Buffers of a call: this rank's own as peers can reach them, and a peer's as this rank can reach
// it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "transport/team.h"

namespace zbccl::transport {

// One of this rank's buffers for the time of a call. Registered memory and memory that peers can
// attach to is shown as it is; anything else is staged: copied to registered memory first (inputs)
// or copied back at the end (outputs), and counted. Move-only.
class LocalBuffer {
 public:
  static Result<LocalBuffer> input(Team& team, const void* data, size_t bytes);
  static Result<LocalBuffer> output(Team& team, void* data, size_t bytes);
  LocalBuffer() = default;
  LocalBuffer(LocalBuffer&& other) noexcept { swap(other); }
  LocalBuffer& operator=(LocalBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~LocalBuffer();

  const BufferRef& ref() const { return ref_; }
  bool staged() const { return staging_ != nullptr; }
  // Copies a staged output to where it belongs.
  void finish();

 private:
  static Result<LocalBuffer> make(Team& team, const void* data, size_t bytes);
  void swap(LocalBuffer& other) noexcept;

  Team* team_ = nullptr;
  BufferRef ref_;
  void* staging_ = nullptr;
  void* target_ = nullptr;
  size_t bytes_ = 0;
};

// A peer's buffer. Valid for one call.
class RemoteBuffer {
 public:
  RemoteBuffer() = default;
  static Result<RemoteBuffer> resolve(Team& team, int rank, const BufferRef& ref);

  // Not nullptr: plain loads and stores reach it.
  std::byte* direct() const { return direct_; }
  Status read(size_t offset, void* dst, size_t bytes) const;
  Status write(size_t offset, const void* src, size_t bytes) const;

 private:
  std::byte* direct_ = nullptr;
  int pid_ = 0;
  uint64_t address_ = 0;
};

}  // namespace zbccl::transport
