// Launches of the reductions on GPUs. Host code includes this; the kernels are in reduce_*.cu. Each
// enqueues one kernel and returns the driver's answer. Arguments are plain data, copied.
#pragma once

#include "base/types.h"
#include "kernels/cuda/launch.h"

namespace zbccl::cuda {

// One reduction: slice q of every rank's input is reduced by rank q.
struct ReduceArgs {
  Buffer in;
  Buffer out;
  uint64_t begin[kMaxRanks] = {};  // of the slices in `in`, bytes
  uint64_t bytes[kMaxRanks] = {};
  uint32_t op = 0;
  // Chunked: the ranks whose outputs get each reduced slice, at its place; 0: a slice goes to the
  // beginning of its owner's output and nowhere else.
  uint32_t targets = 0;
  uint32_t depth = 0;   // chunked: tiles of each block in landing memory; at least 3
  bool whole = false;   // one-shot: every slice is the whole input
  bool direct = false;  // two-shot: results go straight into the peers' outputs
  bool spread = false;  // pull: each reduced pack also goes to its place in the peers' outputs
  EntryCall call;
};

// Every rank leaves slice q in rank q's poison memory, which rank q reads as it comes: one way over
// the link, no flag. Floats of up to 32 bits. Landing: the sum of all ranks' slice.
cudaError_t launch_one_shot(const TeamView& view, const ReduceArgs& args, DataType type,
                            const LaunchShape& shape);
// The same for sums of aligned floats in equal slices with a thread for each pack, among 2, 4 or 8
// ranks: the fewest instructions. False, with nothing launched, for any other. Ranks of one call
// may differ in which of the two they take.
bool launch_one_pack(const TeamView& view, const ReduceArgs& args, DataType type,
                     const LaunchShape& shape, cudaError_t* code);
// An all_reduce in two such steps: slices to their owners, sums to everybody. Two ways over the
// link; the input twice (not `direct`: its outputs are registered) or once in landing memory.
cudaError_t launch_two_shot(const TeamView& view, const ReduceArgs& args, DataType type,
                            const LaunchShape& shape);
// As launch_one_pack().
bool launch_two_packs(const TeamView& view, const ReduceArgs& args, DataType type,
                      const LaunchShape& shape, cudaError_t* code);
// Tiles of the slices through a ring of landing memory with credits, sums straight into the
// outputs. Every type and size.
cudaError_t launch_chunked(const TeamView& view, const ReduceArgs& args, DataType type,
                           const LaunchShape& shape);
// Every rank reads its slice of all inputs, which are registered. Nothing lands. `spread`: an
// all_reduce, whose outputs are registered, too; `out` is the slice's place in this rank's.
cudaError_t launch_pull(const TeamView& view, const ReduceArgs& args, DataType type,
                        const LaunchShape& shape);

// The first half of an all_reduce in relaxed order: slices go around a ring of neighbours, who add
// what they have, and end with their owners; `out` is the slice's place in this rank's output.
// Every type and size.
cudaError_t launch_ring_sums(const TeamView& view, const ReduceArgs& args, DataType type,
                             const LaunchShape& shape);
inline constexpr int kRingTilePacks = 4;   // of each thread
inline constexpr uint64_t kRingDepth = 4;  // tiles of a block in landing memory

// Packs of a tile of launch_chunked() for each thread of a block. Tiles of two packs, in half as
// large a grid, are slower (docs/performance.md).
inline constexpr int kTilePacks = 1;

// Makes every kernel resident, so that none is loaded while another waits.
cudaError_t load_reductions();

}  // namespace zbccl::cuda
