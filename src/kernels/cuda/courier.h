// Kernels that carry a call's buffers between a GPU and pinned host memory, piece by piece, as the
// host takes and gives them: on behalf of a stream, and without a call of CUDA by the host's other
// side, which the stream's owner could hold up while it waits for the stream. Host code includes
// this.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace zbccl::cuda {

inline constexpr int kCourierBlocks = 8;
inline constexpr int kCourierDepth = 2;  // slots of a block
inline constexpr size_t kCourierPiece = size_t{256} << 10;
inline constexpr size_t kCourierSlot = kCourierPiece + 128;  // a piece lies in it as on the device
inline constexpr int kLegRanges = 32;

// Pinned memory; each word has one writer. A count of pieces is of one leg: leg << 32 | pieces.
struct CourierWords {
  // The GPU's.
  alignas(128) uint32_t begun = 0;  // the last leg that has; what was enqueued before it is over
  alignas(128) uint64_t filled[kCourierBlocks] = {};
  alignas(128) uint64_t taken[kCourierBlocks] = {};
  // The host's.
  alignas(128) uint32_t open = 0;  // the last gate that is
  alignas(128) uint32_t over = 0;  // the last leg that the host does nothing for any more
  alignas(128) uint64_t emptied[kCourierBlocks] = {};
  alignas(128) uint64_t offered[kCourierBlocks] = {};
};

struct CourierView {
  CourierWords* words = nullptr;
  char* slots = nullptr;  // pinned: kCourierDepth of kCourierSlot bytes for each block
};

// One launch. Piece p of its ranges, each of which is cut from its beginning, is the business of
// block p modulo the grid, which uses its slots in turn.
struct CourierLeg {
  uint32_t number = 0;  // one more than the leg's before; may wrap
  int32_t blocks = 1;
  int32_t count = 0;
  char* data[kLegRanges] = {};
  uint64_t bytes[kLegRanges] = {};
};

// From the ranges to the host.
cudaError_t launch_lift(const CourierView& view, const CourierLeg& leg, cudaStream_t stream);
// Holds the stream until words->open has come to `number`. The host is to see to it that it does,
// whatever fails.
cudaError_t launch_gate(const CourierView& view, uint32_t number, cudaStream_t stream);
// From the host to the ranges; nothing where words->over comes to the leg and nothing was offered.
cudaError_t launch_drop(const CourierView& view, const CourierLeg& leg, cudaStream_t stream);
cudaError_t load_courier();

}  // namespace zbccl::cuda
