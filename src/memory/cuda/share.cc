// Showing a pool's memory to peers: what each has not yet acknowledged is pushed to its service
// thread, chunk by chunk.
#include <algorithm>

#include "base/log.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/imports.h"

namespace zbccl::cuda {

using memory::ChunkKind;
using memory::PeerProcess;

Status DevicePool::share_slowly(uint32_t segment, Peers peers, Deadline deadline,
                                const Cancelled& cancelled) {
  // Numbers that peers still have for something else; who stands still is not waited for long.
  const auto brief = std::min(deadline.left(), Milliseconds(200));
  if (const Status cleaned = clean(Deadline::after(brief), cancelled); !cleaned.ok()) {
    log::info(log::Subsys::kMem, "{}", cleaned.message());
  }
  // Not everybody pushes to the same peer first.
  const size_t first = peers.size() > 1 ? static_cast<size_t>(device_) % peers.size() : 0;
  for (size_t i = 0; i < peers.size(); ++i) {
    const std::shared_ptr<PeerProcess>& peer = peers[(first + i) % peers.size()];
    const Status status = share_with(peer, segment, deadline, cancelled);
    if (!status.ok()) {
      return status.with_prefix(format("segment {} of GPU {} was not mapped", segment, device_));
    }
  }
  return {};
}

Status DevicePool::share_with(const std::shared_ptr<PeerProcess>& peer, uint32_t segment,
                              Deadline deadline, const Cancelled& cancelled) {
  uint64_t progress = 0;
  if (peer->is_self()) {
    progress = progress_[segment].load(std::memory_order_acquire);
    if (peer->acknowledged(device_, segment) >= progress) return {};
    ZBCCL_RETURN_IF_ERROR(Imports::process().publish_own(*this, segment, deadline));
    peer->acknowledge(device_, segment, progress);
    return {};
  }
  const RelaxedCapture relaxed(*driver_);
  for (const Shown& news : news_for(peer, segment, &progress)) {
    UniqueFd fd;
    if (news.handle != 0) {
      int exported = -1;
      ZBCCL_RETURN_IF_CUDA_ERROR(
          driver_->mem_export_to_shareable_handle(&exported, news.handle,
                                                  CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
          format("cannot export {} bytes", news.chunk.size));
      fd.reset(exported);
    }
    ZBCCL_RETURN_IF_ERROR(peer->push_chunk(news.chunk, fd.get(), deadline, cancelled));
  }
  peer->acknowledge(device_, segment, progress);
  return {};
}

// What of the segment the peer has not acknowledged, and the count that covers it.
std::vector<DevicePool::Shown> DevicePool::news_for(const std::shared_ptr<PeerProcess>& peer,
                                                    uint32_t segment, uint64_t* progress) {
  const std::lock_guard lock(mutex_);
  *progress = progress_[segment].load(std::memory_order_acquire);
  const uint64_t known = peer->acknowledged(device_, segment);
  std::vector<Shown> news;
  Shown shown;
  shown.chunk.device = id_.uuid;
  shown.chunk.segment = segment;
  const auto add = [&](ChunkKind kind, uint64_t offset, uint64_t size, uint64_t serial,
                       CUmemGenericAllocationHandle handle) {
    shown.chunk.kind = static_cast<uint32_t>(kind);
    shown.chunk.serial = serial;
    shown.chunk.offset = offset;
    shown.chunk.size = size;
    shown.handle = handle;
    news.push_back(shown);
  };
  if (segment == 0) {
    shown.chunk.use = 1;
    shown.chunk.reserve = reserve_;
    for (auto& [offset, chunk] : chunks_) {
      if (chunk.serial <= known || chunk.releasing) continue;
      chunk.shown = true;  // from here on the peer may have it, whatever it answers
      add(ChunkKind::kVmm, offset, chunk.size, chunk.serial, chunk.handle);
    }
    return news;
  }
  const auto it = foreign_.find(segment);
  if (it == foreign_.end() || it->second.withdrawn) return news;
  Foreign& foreign = it->second;
  shown.chunk.use = foreign.use;
  shown.chunk.reserve = foreign.size;
  if (known < foreign.use) foreign.shown.emplace_back(peer);
  static_assert(sizeof foreign.ipc == sizeof shown.chunk.ipc);
  std::copy_n(reinterpret_cast<const uint8_t*>(&foreign.ipc), sizeof foreign.ipc,
              shown.chunk.ipc.begin());
  for (const Piece& piece : foreign.pieces) {
    if (piece.serial <= known) continue;
    add(foreign.kind, piece.offset, piece.size, piece.serial, piece.handle);
  }
  return news;
}

}  // namespace zbccl::cuda
