// Buffers of a call: this rank's own as peers can reach them, and a peer's as this rank can reach
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/status.h"
#include "memory/attach.h"
#include "memory/pool.h"
#include "transport/team.h"

namespace zbccl::transport {

// One of this rank's buffers for the time of a call. Registered memory and memory that peers can
// attach to is shown as it is; anything else is staged: copied to registered memory first (inputs)
// or copied back at the end (outputs), and counted. Opened once. Move-only.
class LocalBuffer {
 public:
  // What peers do with it. kWritten: they load from it and store to it, which only memory of the
  // pool is shown for: a store to ordinary memory could come late and could not be kept away.
  enum class Access { kRead, kWritten };

  // To be read by peers, with `data` in it.
  Status open_input(Team& team, const void* data, size_t bytes) {
    if (show(data, bytes)) [[likely]] {
      return {};
    }
    return open_slow(team, const_cast<void*>(data), bytes, Access::kRead, true);
  }
  // To be read by peers (ordinary memory) or written by them (memory of the pool).
  Status open_output(Team& team, void* data, size_t bytes) {
    team_ = &team;
    if (show(data, bytes)) [[likely]] {
      return {};
    }
    return open_slow(team, data, bytes, Access::kRead, false);
  }
  // Input and output at once; peers write to it.
  Status open_in_place(Team& team, void* data, size_t bytes) {
    team_ = &team;
    if (show(data, bytes)) [[likely]] {
      return {};
    }
    return open_slow(team, data, bytes, Access::kWritten, true);
  }
  LocalBuffer() = default;
  LocalBuffer(LocalBuffer&& other) noexcept { swap(other); }
  LocalBuffer& operator=(LocalBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~LocalBuffer() {
    if (team_ != nullptr && (staging_ != nullptr || team_->failed())) close();
  }

  const BufferRef& ref() const { return ref_; }
  // Where the bytes are that peers see.
  std::byte* shown() const {
    return static_cast<std::byte*>(staging_ != nullptr ? staging_ : data_);
  }
  bool staged() const { return staging_ != nullptr; }
  // Copies a staged output to where it belongs.
  void finish();

 private:
  bool show(const void* data, size_t bytes) {
    data_ = const_cast<void*>(data);
    if (bytes == 0) return true;
    const auto location = memory::Pool::process().locate(data, bytes);
    if (!location) return false;
    ref_ = {location->segment, 0, location->offset};
    return true;
  }
  void close();
  Status open_slow(Team& team, void* data, size_t bytes, Access access, bool filled);
  void swap(LocalBuffer& other) noexcept;

  Team* team_ = nullptr;  // null if there is nothing to do in the end
  BufferRef ref_;
  void* data_ = nullptr;
  void* staging_ = nullptr;
  size_t bytes_ = 0;
};

// A peer's buffer. Valid for one call.
class RemoteBuffer {
 public:
  // `limit`: how long a first import may take.
  Status resolve(Team& team, int rank, const BufferRef& ref, Milliseconds limit) {
    if (ref.segment != BufferRef::kAddress) [[likely]] {
      if (std::byte* base = team.peer(rank).process->imported(ref.segment)) [[likely]] {
        direct_ = base + ref.offset;
        return {};
      }
    }
    return resolve_slow(team, rank, ref, limit);
  }
  // In the operation that runs.
  Status resolve(Team& team, int rank, const BufferRef& ref) {
    return resolve(team, rank, ref, team.call_timeout());
  }

  // Not nullptr: plain loads and stores reach it.
  std::byte* direct() const { return direct_; }
  Status read(size_t offset, void* dst, size_t bytes, bool stream_stores = false) const;
  // Many pieces at once, where there is no direct(): each address is the piece's offset.
  Status read_pieces(std::span<memory::AttachedPiece> pieces) const;

 private:
  Status resolve_slow(Team& team, int rank, const BufferRef& ref, Milliseconds limit);

  std::byte* direct_ = nullptr;
  int pid_ = 0;
  uint64_t address_ = 0;
};

}  // namespace zbccl::transport
