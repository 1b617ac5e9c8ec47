// The buffers of a call on device memory: whose they are, and which of their bytes it reads and
// writes. Pure functions; any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "collectives/collective.h"
#include "kernels/cuda/norm_spec.h"

namespace zbccl::cuda {

// kInvalidArgument unless every buffer that this rank uses is memory of GPU `device`.
Status check_buffers(const collectives::Collective& call, int rank, int nranks, int device);

// One of the outputs of all_reduce_rms_norm, in the order of NormOutput; null: not wanted.
struct NormBuffer {
  const char* name;
  void* data;
  size_t bytes;
  uintptr_t alignment;
  bool has_gaps;  // which keep what is in them
};
std::array<NormBuffer, kNormOutputs> norm_outputs(const collectives::NormCall& call);

struct DeviceRange {
  const void* data = nullptr;
  size_t bytes = 0;
};
// Of this rank's buffers.
struct CallRanges {
  std::vector<DeviceRange> all;  // each from its first byte to its last
  std::vector<DeviceRange> in;   // what the call needs
  std::vector<DeviceRange> out;  // what it writes; nothing of `all` besides changes
};
CallRanges ranges_of(const collectives::Collective& call, int rank, int nranks);

}  // namespace zbccl::cuda
