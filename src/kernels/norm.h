// Residual addition and RMSNorm of rows, and their quantisation to e4m3. Stateless; any thread; no
// alignment asked of any pointer. The same bits as the GPU kernels (kernels/cuda/rms_norm.cuh says
// the order of every operation).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/types.h"

namespace zbccl::kernels {

// r = x + residual, rounded to the type; y = (r / sqrt(mean of r^2 + epsilon)) * w, where w is the
// weight or 1 + the weight; out: y rounded to the type; codes: y / scale in e4m3.
struct Norm {
  DataType type = DataType::kBf16;  // or f16
  size_t hidden = 0;                // a multiple of 8; with scales of groups of kScaleGroup
  float epsilon = 0;
  bool one_plus_weight = false;
  NormCodes form = NormCodes::kNone;
  float scale = 1;  // kTensorScale
};

// The rows [first, first + count) of matrices of any number of rows, at their places in each.
struct NormOutputs {
  void* residual_out = nullptr;  // null: not wanted
  void* out = nullptr;           // the same
  void* codes = nullptr;         // unless `form` is kNone
  float* scales = nullptr;       // of groups; null: not wanted
  uint8_t* exponents = nullptr;  // of scales that are powers of two, as UE8M0; null: not wanted
  size_t row_stride = 0;         // elements between the scales of neighbouring rows,
  size_t group_stride = 0;       // and of neighbouring groups
};

// What a thread keeps from row to row.
struct NormScratch {
  std::vector<float> widened;
  std::vector<float> scales;
  std::vector<std::byte> row;  // free for the caller
  std::vector<uint8_t> exponents;
};

// Rows `first` to first + count - 1 go to their places in each of `num_to` outputs, which all want
// the same. `x`: the first of these rows; `residual` (null: none) and the outputs: row 0 of all.
// An output may be the same range as x or the residual.
void norm_rows(const Norm& norm, const void* x, const void* residual, const void* weight,
               size_t first, size_t count, const NormOutputs* to, size_t num_to,
               NormScratch& scratch);

}  // namespace zbccl::kernels
