// What the host and the kernels agree on about rows that are normalised and groups that are
// quantised. Plain data; no CUDA types.
#pragma once

#include <cstdint>

#include "base/types.h"
#include "kernels/cuda/numbers_base.h"

namespace zbccl::cuda {

// hidden: a multiple of the elements of a pack, with group scales of 128. Addresses are aligned to
// 16 bytes, codes to 8. Matrices begin with row 0.
struct NormSpec {
  const void* residual = nullptr;  // null: none
  const void* weight = nullptr;
  int hidden = 0;
  float epsilon = 0;
  float inverse_scale = 1;  // kTensorScale: 1 / scale
  NormCodes form = NormCodes::kNone;
  bool one_plus_weight = false;  // as Gemma keeps its weights
  int64_t row_stride = 0;        // elements between the scales of neighbouring rows
  int64_t group_stride = 0;      // and of neighbouring groups
};

// Where the rows go.
enum NormOutput {
  kResidualOut,  // may be the residual
  kOut,          // y, rounded to the type
  kCodes,        // y / scale in e4m3
  kScales,       // of the groups: f32,
  kScalesUe8m0,  // and of powers of two the exponents, in bytes
};
inline constexpr int kNormOutputs = 5;
struct NormTarget {
  void* data[kNormOutputs] = {};  // null: left out
};

// Rows that each rank normalises, the last ones perhaps fewer.
ZBCCL_BOTH constexpr int64_t norm_share(int64_t tokens, int nranks) {
  return (tokens + nranks - 1) / nranks;
}

// A warp quantises so many elements at a time: their codes, and a pack of scales.
inline constexpr int kTileElements = 512;
inline constexpr int kTileCodePacks = kTileElements / 16;
inline constexpr int kTilePoisonPacks = kTileCodePacks + 1;

// Tiles of `elements` that each rank adds up, the last ones perhaps fewer; and the packs of landing
// memory that this takes.
ZBCCL_BOTH constexpr int64_t quantized_share(int64_t elements, int nranks) {
  const int64_t tiles = (elements + kTileElements - 1) / kTileElements;
  return (tiles + nranks - 1) / nranks;
}
ZBCCL_BOTH constexpr int64_t quantized_packs(int64_t share, int nranks) {
  return 2 * share * nranks * kTilePoisonPacks;
}
// Elements whose codes and sums fit into a slot of so many bytes.
ZBCCL_BOTH constexpr int64_t quantized_most(int64_t slot_bytes, int nranks) {
  return slot_bytes / 16 / quantized_packs(1, nranks) * nranks * kTileElements;
}

}  // namespace zbccl::cuda
