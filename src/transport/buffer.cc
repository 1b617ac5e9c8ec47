#include "transport/buffer.h"

#include <cstring>
#include <utility>

#include "kernels/reduce.h"
#include "memory/attach.h"
#include "memory/pool.h"

namespace zbccl::transport {

Result<LocalBuffer> LocalBuffer::make(Team& team, const void* data, size_t bytes) {
  LocalBuffer buffer;
  buffer.team_ = &team;
  buffer.bytes_ = bytes;
  if (bytes == 0) return buffer;
  if (const auto location = memory::Pool::process().locate(data, bytes)) {
    buffer.ref_ = {location->segment, 0, location->offset};
    return buffer;
  }
  if (team.attachable()) {
    buffer.ref_ = {BufferRef::kAddress, 0, reinterpret_cast<uint64_t>(data)};
    return buffer;
  }
  ZBCCL_ASSIGN_OR_RETURN(buffer.staging_,
                         memory::Pool::process().allocate(bytes, memory::Use::kStaging));
  const auto location = memory::Pool::process().locate(buffer.staging_, bytes);
  buffer.ref_ = {location->segment, 0, location->offset};
  team.traffic().add_staged(bytes);
  observe::process_traffic().add_staged(bytes);
  return buffer;
}

Result<LocalBuffer> LocalBuffer::input(Team& team, const void* data, size_t bytes) {
  auto buffer = make(team, data, bytes);
  if (buffer.ok() && buffer->staging_ != nullptr) {
    kernels::copy(buffer->staging_, data, bytes, false);
  }
  return buffer;
}

Result<LocalBuffer> LocalBuffer::output(Team& team, void* data, size_t bytes) {
  auto buffer = make(team, data, bytes);
  if (buffer.ok()) buffer->target_ = data;
  return buffer;
}

void LocalBuffer::finish() {
  if (staging_ != nullptr && target_ != nullptr) kernels::copy(target_, staging_, bytes_, false);
}

LocalBuffer::~LocalBuffer() {
  if (staging_ == nullptr) return;
  // A team that failed may have a late peer that still writes: that memory is not used again.
  if (team_->failed()) return;
  (void)memory::Pool::process().free(staging_);
}

void LocalBuffer::swap(LocalBuffer& other) noexcept {
  std::swap(team_, other.team_);
  std::swap(ref_, other.ref_);
  std::swap(staging_, other.staging_);
  std::swap(target_, other.target_);
  std::swap(bytes_, other.bytes_);
}

Result<RemoteBuffer> RemoteBuffer::resolve(Team& team, int rank, const BufferRef& ref) {
  RemoteBuffer buffer;
  memory::PeerProcess& process = *team.peer(rank).process;
  if (ref.segment != BufferRef::kAddress) {
    auto base = process.segment(ref.segment, Deadline::after(team.timeout()));
    if (!base.ok()) return base.status().with_prefix(format("memory of rank {}", rank));
    buffer.direct_ = *base + ref.offset;
  } else if (process.is_self()) {
    buffer.direct_ = reinterpret_cast<std::byte*>(ref.offset);
  } else {
    buffer.pid_ = process.pid();
    buffer.address_ = ref.offset;
  }
  return buffer;
}

Status RemoteBuffer::read(size_t offset, void* dst, size_t bytes) const {
  if (bytes == 0) return {};
  if (direct_ == nullptr) return memory::attach_read(pid_, dst, address_ + offset, bytes);
  kernels::copy(dst, direct_ + offset, bytes, false);
  return {};
}

Status RemoteBuffer::write(size_t offset, const void* src, size_t bytes) const {
  if (bytes == 0) return {};
  if (direct_ == nullptr) return memory::attach_write(pid_, address_ + offset, src, bytes);
  kernels::copy(direct_ + offset, src, bytes, false);
  return {};
}

}  // namespace zbccl::transport
