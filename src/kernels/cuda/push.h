// Launches of the operations on GPUs that move data and reduce nothing. Host code includes this;
// the kernels are in push*.cu. Data goes from the input where it is to the output where it belongs;
// both ends are in the kernel's arguments and in the entries.
#pragma once

#include "kernels/cuda/launch.h"

namespace zbccl::cuda {

// What this rank sends to each: bytes[k] bytes at `from[k]` in its input, to the place that rank
// k's entry names. Its own block goes to `own_to` in its output.
struct PushArgs {
  EntryCall call;
  Buffer in;
  Buffer out;
  uint64_t from[kMaxRanks] = {};
  uint64_t bytes[kMaxRanks] = {};
  uint64_t own_to = 0;
  uint64_t to[kMaxRanks] = {};  // inline: where each rank's block belongs in `out`
  uint64_t longest = 0;      // of all blocks of all ranks that this rank knows of; at least its own
  bool same_source = false;  // every rank gets the same block
};

// Stores of threads: any alignment, any size. With nothing to send: a barrier.
cudaError_t launch_push(const TeamView& view, const PushArgs& args, const LaunchShape& shape);
// The bulk-copy engine: few SMs, for large blocks.
cudaError_t launch_push_bulk(const TeamView& view, const PushArgs& args, const LaunchShape& shape);

// A meeting of all ranks, in one block: everything that a rank's stream held before is done, here
// and in the memory of peers, when what it holds behind that begins anywhere.
cudaError_t launch_meet(const TeamView& view, const EntryCall& call, cudaStream_t stream);

// Small blocks through landing memory, every eight bytes beside the epoch: one flight, no fence.
cudaError_t launch_push_inline(const TeamView& view, const PushArgs& args,
                               const LaunchShape& shape);

// Blocks of `bytes` bytes each, one for each rank, that are exchanged where they lie: rank k's
// entry names the one that it has for this rank.
struct SwapArgs {
  EntryCall call;
  char* data = nullptr;
  uint64_t bytes = 0;
};
cudaError_t launch_swap(const TeamView& view, const SwapArgs& args, const LaunchShape& shape);

// Slices, one of each rank, that go around a ring to the same places in everybody's output, which
// entries name from its beginning.
struct RingArgs {
  EntryCall call;
  const char* own = nullptr;  // this rank's slice; may be in its place already
  char* out = nullptr;
  uint64_t begin[kMaxRanks] = {};
  uint64_t bytes[kMaxRanks] = {};
  uint64_t piece = 0;  // what a block sends at a time; a multiple of 16
};
cudaError_t launch_ring(const TeamView& view, const RingArgs& args, const LaunchShape& shape);

// A broadcast over more than two ranks: the root sends every other rank its share, and each passes
// its share on to the rest; or, the largest, everything goes down a chain of neighbours, whose
// links carry a little more.
struct RelayArgs {
  EntryCall call;
  Buffer in;   // of the root
  Buffer out;  // of `bytes` bytes
  uint64_t bytes = 0;
  int root = 0;
  bool chain = false;  // every rank passes everything on to the next
};
cudaError_t launch_relay(const TeamView& view, const RelayArgs& args, const LaunchShape& shape);

cudaError_t load_pushes();

}  // namespace zbccl::cuda
