#include "transport/buffer.h"

#include <cstring>
#include <utility>

#include "kernels/reduce.h"
#include "memory/attach.h"
#include "memory/pool.h"

namespace zbccl::transport {

Status LocalBuffer::open_slow(Team& team, void* data, size_t bytes, Access access, bool filled) {
  if (access == Access::kRead && team.attachable()) {
    ref_ = {BufferRef::kAddress, 0, reinterpret_cast<uint64_t>(data)};
    return {};
  }
  memory::Pool& pool = memory::Pool::process();
  team_ = &team;
  bytes_ = bytes;
  ZBCCL_ASSIGN_OR_RETURN(staging_, pool.allocate(bytes, memory::Use::kStaging));
  const auto location = pool.locate(staging_, bytes);
  ref_ = {location->segment, 0, location->offset};
  team.count_staged(bytes);
  if (filled) kernels::copy(staging_, data, bytes, false);
  return {};
}

void LocalBuffer::finish() {
  if (staging_ != nullptr) kernels::copy(data_, staging_, bytes_, false);
}

void LocalBuffer::close() {
  // A team that failed may have a late peer that still writes to what it has been shown.
  if (team_->failed()) team_->quarantine(shown());
  if (staging_ != nullptr) (void)memory::Pool::process().free(staging_);
}

void LocalBuffer::swap(LocalBuffer& other) noexcept {
  std::swap(team_, other.team_);
  std::swap(ref_, other.ref_);
  std::swap(data_, other.data_);
  std::swap(staging_, other.staging_);
  std::swap(bytes_, other.bytes_);
}

Status RemoteBuffer::resolve_slow(Team& team, int rank, const BufferRef& ref, Milliseconds limit) {
  memory::PeerProcess& process = *team.peer(rank).process;
  if (ref.segment != BufferRef::kAddress) {
    team.set_blocked_on(rank);
    auto base = process.segment(ref.segment, Deadline::after(limit), [&] { return team.failed(); });
    // After a failure the word stays: others, whose deadlines pass about now, follow it.
    if (!base.ok()) return team.unreachable(rank, base.status());
    team.set_blocked_on(-1);
    direct_ = *base + ref.offset;
  } else if (process.is_self()) {
    direct_ = reinterpret_cast<std::byte*>(ref.offset);
  } else {
    pid_ = process.pid();
    address_ = ref.offset;
  }
  return {};
}

Status RemoteBuffer::read(size_t offset, void* dst, size_t bytes, bool stream_stores) const {
  if (bytes == 0) return {};
  if (direct_ == nullptr) return memory::attach_read(pid_, dst, address_ + offset, bytes);
  kernels::copy(dst, direct_ + offset, bytes, stream_stores);
  return {};
}

Status RemoteBuffer::read_pieces(std::span<memory::AttachedPiece> pieces) const {
  for (memory::AttachedPiece& piece : pieces) piece.address += address_;
  return memory::attach_read(pid_, pieces);
}

}  // namespace zbccl::transport
