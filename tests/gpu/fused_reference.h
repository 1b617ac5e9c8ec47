// What src/kernels/cuda/rms_norm.cuh and quantize.cuh compute, in plain scalar code for the host.
#pragma once

#include <cstdint>
#include <vector>

#include "base/types.h"
#include "reduce_reference.h"

namespace zbccl::test {

using kernels::test::Bytes;

enum class Scales { kNone, kTensor, kGroup, kGroupPowerOfTwo };

struct NormCase {
  DataType type = DataType::kBf16;
  int hidden = 0;
  float epsilon = 0;
  bool one_plus_weight = false;
  Scales scales = Scales::kNone;
  float tensor_scale = 1;
};

struct NormResult {
  Bytes residual_out;
  Bytes out;
  Bytes codes;
  std::vector<float> scales;
  std::vector<uint8_t> exponents;  // of scales that are powers of two
};

// One row; `residual` may be null.
NormResult norm_reference(const NormCase& norm, const uint8_t* x, const uint8_t* residual,
                          const uint8_t* weight);

// Groups of 128 elements, e4m3 or int8.
struct QuantizedGroups {
  std::vector<int> codes;  // the bits of e4m3, the number of int8
  std::vector<float> scales;
  std::vector<float> values;  // codes times scales
};
QuantizedGroups quantize_reference(bool int8, const std::vector<float>& values);

}  // namespace zbccl::test
