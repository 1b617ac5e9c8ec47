// Sends and receives. Not an operation of the team: only the two ranks of a message take part, so
// the team's epoch stays, and messages are numbered for each pair and direction.
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sync.cuh"
#include "kernels/cuda/transfer.h"

namespace zbccl::cuda {
namespace {

constexpr int kUnroll = 4;

// Tells the sender where the buffer is, and waits for each of the sender's blocks.
__device__ __forceinline__ void receive(const TeamView& view, const Transfer& transfer,
                                        uint32_t message) {
  const int tid = static_cast<int>(threadIdx.x);
  if (tid < kEntryWords) {
    const uint64_t word = reinterpret_cast<const uint32_t*>(&transfer.offer)[tid];
    store_release(&view.control[transfer.peer]->offers[view.rank][tid], word << 32 | message);
  }
  if (tid >= kTransferBlocks) return;
  const uint64_t* const words = view.control[view.rank]->arrivals[transfer.peer];
  Waiter waiter(view, message);
  // The first word says how many there are.
  int mine = 0;
  for (;;) {
    const uint64_t seen = load_acquire(&words[mine]);
    if (static_cast<uint32_t>(seen) == message) {
      if (mine == tid || tid >= static_cast<int>(seen >> 32)) return;
      mine = tid;
    } else if (!waiter.again(static_cast<uint32_t>(transfer.peer), kAtArrival, message, seen)) {
      return;
    }
  }
}

__device__ __forceinline__ void send(const TeamView& view, const Transfer& transfer,
                                     uint32_t message, int block) {
  __shared__ uint32_t words[kEntryWords];
  const int tid = static_cast<int>(threadIdx.x);
  int wrong = 0;
  if (tid < kEntryWords) {
    const uint64_t* const from = &view.control[view.rank]->offers[transfer.peer][tid];
    Waiter waiter(view, message);
    uint64_t seen;
    for (;;) {
      seen = load_acquire(from);
      if (static_cast<uint32_t>(seen) == message) break;
      if (!waiter.again(static_cast<uint32_t>(transfer.peer), kAtOffer, message,
                        static_cast<uint32_t>(seen))) {
        wrong = 2;
        break;
      }
    }
    words[tid] = static_cast<uint32_t>(seen >> 32);
    const uint32_t mine = reinterpret_cast<const uint32_t*>(&transfer.offer)[tid];
    if (wrong == 0 && tid < 4 && words[tid] != mine) wrong = 1;
  }
  const int any = __syncthreads_or(wrong);
  if (any != 0) {
    if ((any & 2) == 0 && tid == 0) {
      const uint64_t asked = static_cast<uint64_t>(words[3]) << 32 | words[2];
      fail(view, FailureKind::kMismatch, static_cast<uint32_t>(transfer.peer), kAtOffer, message,
           transfer.bytes, asked, reinterpret_cast<const uint32_t*>(&transfer.offer), words);
    }
    return;
  }
  if (transfer.bytes > 0) {
    char* const to = reinterpret_cast<char*>(segment_base(view, transfer.peer, words[6] >> 16)) +
                     (static_cast<uint64_t>(words[6] & 0xffff) << 32 | words[7]);
    const uint64_t tile = static_cast<uint64_t>(blockDim.x) * kUnroll * kPackBytes;
    for (uint64_t at = block * tile; at < transfer.bytes; at += transfer.blocks * tile) {
      copy_tile<kUnroll>(to + at, transfer.data + at, min(tile, transfer.bytes - at));
    }
  }
  __syncthreads();
  if (tid == 0) {
    store_release(&view.control[transfer.peer]->arrivals[view.rank][block],
                  static_cast<uint64_t>(transfer.blocks) << 32 | message);
  }
}

__global__ void __launch_bounds__(512)
    transfer(const __grid_constant__ TeamView view, const __grid_constant__ TransferArgs args) {
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  Control* const own = view.control[view.rank];
  int index = 0;
  while (static_cast<int>(blockIdx.x) >=
         args.transfers[index].first_block + args.transfers[index].blocks) {
    ++index;
  }
  const Transfer& mine = args.transfers[index];
  const int block = static_cast<int>(blockIdx.x) - mine.first_block;
  const uint32_t* const counts =
      mine.is_send != 0 ? own->sent[blockIdx.x] : own->received[blockIdx.x];
  // Numbers begin at 1, so that none equals what fresh memory holds.
  const uint32_t message = counts[mine.peer] + 1;
  if (load_relaxed(&own->failed) == 0) {
    if (mine.is_send != 0) {
      send(view, mine, message, block);
    } else {
      receive(view, mine, message);
    }
  } else if (threadIdx.x == 0) {
    (void)has_failed(view, message);
  }
  __syncthreads();
  // As end() in sync.cuh.
  for (uint32_t i = threadIdx.x; i < static_cast<uint32_t>(kMaxBlocks * args.count);
       i += blockDim.x) {
    const uint32_t copy = i % kMaxBlocks;
    if (copy % gridDim.x != blockIdx.x) continue;
    const Transfer& done = args.transfers[i / kMaxBlocks];
    uint32_t* const copies = done.is_send != 0 ? own->sent[copy] : own->received[copy];
    ++copies[done.peer];
  }
}

}  // namespace

cudaError_t launch_transfer(const TeamView& view, const TransferArgs& args,
                            const LaunchShape& shape) {
  return start(transfer, shape, 0, view, args);
}

cudaError_t load_transfer() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, transfer);
}

}  // namespace zbccl::cuda
