// Launch of sends and receives on GPUs. Host code includes this.
#pragma once

#include "kernels/cuda/launch.h"

namespace zbccl::cuda {

inline constexpr int kMaxTransfers = 2 * kMaxRanks;  // of one kernel: one each way for each peer

// One send or receive of this rank. A receiver tells the sender its buffer's place, which `offer`
// carries; a sender compares the rest of it with its own.
struct Transfer {
  char* data = nullptr;
  uint64_t bytes = 0;
  int32_t peer = 0;
  int32_t first_block = 0;
  int32_t blocks = 1;  // a receive takes one
  int32_t is_send = 0;
  Entry offer = {};
};

// At most one message for each peer and direction.
struct TransferArgs {
  Transfer transfers[kMaxTransfers];
  int32_t count = 0;
};

// Bytes over the link: each message once, from the sender's buffer into the receiver's. Two
// flights: the offer and the data. All messages progress at once. `shape.blocks` is the sum of
// theirs.
cudaError_t launch_transfer(const TeamView& view, const TransferArgs& args,
                            const LaunchShape& shape);
cudaError_t load_transfer();

}  // namespace zbccl::cuda
