// Sends and receives of device memory.
#include <algorithm>
#include <vector>

#include "collectives/cuda/engine.h"
#include "kernels/cuda/transfer.h"
#include "memory/device_memory.h"

namespace zbccl::cuda {

using collectives::DeviceTransfer;

// The n-th message to the own rank is the n-th from it.
Status Engine::transfer_with_self(std::span<const DeviceTransfer> transfers, cudaStream_t stream) {
  std::vector<const DeviceTransfer*> sends;
  std::vector<const DeviceTransfer*> receives;
  for (const DeviceTransfer& it : transfers) {
    if (it.peer == team_->rank()) (it.is_send ? sends : receives).push_back(&it);
  }
  if (sends.size() != receives.size()) {
    return error(Code::kInvalidUsage,
                 "{} sends to and {} receives from the own rank on the device; put both sides of a "
                 "message in one group",
                 sends.size(), receives.size());
  }
  for (size_t i = 0; i < sends.size(); ++i) {
    if (sends[i]->bytes != receives[i]->bytes || sends[i]->type != receives[i]->type) {
      return error(Code::kInvalidUsage,
                   "a message of {} bytes to the own rank meets a receive of {}", sends[i]->bytes,
                   receives[i]->bytes);
    }
    if (sends[i]->bytes == 0) continue;
    ZBCCL_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(receives[i]->data, sends[i]->data, sends[i]->bytes,
                                               cudaMemcpyDeviceToDevice, stream),
                               "copying a message to the own rank");
  }
  return {};
}

Status Engine::transfer(std::span<const DeviceTransfer> transfers, const collectives::Launch& how) {
  const DeviceGuard guard(team_->device());
  ZBCCL_RETURN_IF_ERROR(guard.status());
  auto* const stream = static_cast<cudaStream_t>(how.stream);
  ZBCCL_RETURN_IF_ERROR(team_->take_failure(stream));
  stream_now_ = stream;
  for (const DeviceTransfer& it : transfers) {
    if (it.bytes == 0 || memory::device_of(it.data) == team_->device()) continue;
    return error(Code::kInvalidArgument, "{}: the buffer at {} is not memory of CUDA device {}",
                 it.is_send ? "send" : "recv", it.data, team_->device());
  }
  ZBCCL_RETURN_IF_ERROR(team_->order(stream));
  ZBCCL_RETURN_IF_ERROR(transfer_with_self(transfers, stream));
  staged_now_ = 0;

  struct Output {
    Operand operand;
    const DeviceTransfer* transfer;
  };
  std::vector<Output> outputs;
  // The n-th message of each peer and direction is in the n-th kernel, at both of its ends, so the
  // kernels of a group cannot wait for each other crosswise.
  std::vector<const DeviceTransfer*> left;
  for (const DeviceTransfer& it : transfers) {
    if (it.peer != team_->rank()) left.push_back(&it);
  }
  while (!left.empty()) {
    TransferArgs args;
    std::vector<const DeviceTransfer*> later;
    bool taken[2][kMaxRanks] = {};
    for (const DeviceTransfer* it : left) {
      bool& is_taken = taken[it->is_send ? 1 : 0][it->peer];
      if (is_taken) {
        later.push_back(it);
        continue;
      }
      is_taken = true;
      Transfer& transfer = args.transfers[args.count++];
      transfer.data = static_cast<char*>(it->data);
      transfer.bytes = it->bytes;
      transfer.peer = it->peer;
      transfer.is_send = it->is_send ? 1 : 0;
      Collective same;
      same.operation = Operation::kSend;
      same.type = it->type;
      transfer.offer = entry_for(same, {}, it->bytes);
      if (it->is_send) continue;
      Operand operand;
      ZBCCL_RETURN_IF_ERROR(open_output(it->data, it->bytes, &operand));
      transfer.offer.out_high = operand.place.high;
      transfer.offer.out_low = operand.place.low;
      outputs.push_back({operand, it});
    }
    ZBCCL_RETURN_IF_CUDA_ERROR(
        launch_transfer(team_->view(Milliseconds(0)), args, spread(args, how, stream)),
        "send and receive");
    left = std::move(later);
  }
  for (const Output& output : outputs) {
    ZBCCL_RETURN_IF_ERROR(
        close_output(output.operand, output.transfer->data, output.transfer->bytes, stream));
  }
  return team_->enqueued(stream);
}

// Gives the blocks that the receives leave to the sends.
LaunchShape Engine::spread(TransferArgs& args, const collectives::Launch& how,
                           cudaStream_t stream) const {
  const int asked = block_limit(how);
  const int limit = asked > 0 ? std::min(asked, 64) : 64;
  int sends = 0;
  for (int i = 0; i < args.count; ++i) sends += args.transfers[i].is_send;
  const int share =
      sends == 0 ? 1 : std::clamp((limit - (args.count - sends)) / sends, 1, kTransferBlocks);
  int next = 0;
  for (int i = 0; i < args.count; ++i) {
    Transfer& transfer = args.transfers[i];
    if (transfer.is_send != 0) {
      constexpr uint64_t kBlockBytes = 32 << 10;
      transfer.blocks = static_cast<int>(
          std::clamp<uint64_t>(transfer.bytes / kBlockBytes, 1, static_cast<uint64_t>(share)));
    }
    transfer.first_block = next;
    next += transfer.blocks;
  }
  return {next, 512, stream};
}

}  // namespace zbccl::cuda
