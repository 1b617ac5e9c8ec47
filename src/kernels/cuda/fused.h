// Launches of the fused operations on GPUs. Host code includes this; the kernels are in norm_*.cu
// and quantized.cu. Each enqueues one kernel and returns the driver's answer. Arguments are plain
// data, copied.
#pragma once

#include "base/types.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm_spec.h"

namespace zbccl::cuda {

struct NormArgs {
  EntryCall call;
  NormSpec spec;
  NormTarget own;                   // this rank's outputs
  Place places[kNormOutputs] = {};  // the same as peers find them, in the order of NormOutput
  char* x = nullptr;                // this rank's part of the sums
  int64_t tokens = 0;
  bool pull = false;  // shares: inputs are registered and read where they lie; else rows land
};

// bf16 and f16; hidden at most kMostHidden. `shape.threads` is chosen by norm_threads().
// Every rank leaves its rows in every rank's poison memory, and each normalises all of them. The
// whole input of all ranks lands.
cudaError_t launch_norm_one_shot(const TeamView& view, const NormArgs& args, DataType type,
                                 const LaunchShape& shape);
// Each rank normalises a share of the rows, norm_share(tokens, nranks) of them, and stores the
// results in every rank's outputs, which are registered.
cudaError_t launch_norm_shares(const TeamView& view, const NormArgs& args, DataType type,
                               const LaunchShape& shape);

inline constexpr int kMostHidden = 16384;
// Threads of a block for rows of `hidden` elements, without those that watch entries.
int norm_threads(int hidden);

// One all_reduce by codes, of at most quantized_most() elements.
struct QuantizedArgs {
  EntryCall call;
  Buffer in;
  Buffer out;  // of as many bytes
};
cudaError_t launch_quantized(const TeamView& view, const QuantizedArgs& args, DataType type,
                             DataType code, const LaunchShape& shape);

cudaError_t load_fused();

}  // namespace zbccl::cuda
