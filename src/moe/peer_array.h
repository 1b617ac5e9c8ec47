// A peer's array for the time of a call: where it lies, or, where plain loads do not reach it, as a
// copy in memory of this object. One thread.
#pragma once

#include <cstddef>
#include <vector>

#include "base/status.h"
#include "transport/buffer.h"

namespace zbccl::moe {

class PeerArray {
 public:
  // `own`: the array where `rank` is this rank.
  Status open(transport::Team& team, int rank, const transport::BufferRef& ref, const void* own,
              size_t bytes) {
    if (rank == team.rank()) {
      data_ = static_cast<const std::byte*>(own);
      return {};
    }
    if (bytes == 0) return {};
    transport::RemoteBuffer buffer;
    ZBCCL_RETURN_IF_ERROR(buffer.resolve(team, rank, ref));
    data_ = buffer.direct();
    if (data_ != nullptr) return {};
    copy_.resize(bytes);
    data_ = copy_.data();
    return buffer.read(0, copy_.data(), bytes);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  const std::byte* data_ = nullptr;
  std::vector<std::byte> copy_;
};

}  // namespace zbccl::moe
