// What the fused operations compute (docs/numerics.md), in plain scalar code of its own.
#pragma once

#include <zbccl/zbccl.h>

#include <cstdint>
#include <vector>

namespace zbccl::test {

using Bytes = std::vector<uint8_t>;

enum class Scales { kNone, kTensor, kGroup, kGroupPowerOfTwo };

struct NormCase {
  zbcclDataType_t type = zbcclBfloat16;  // or f16
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

// The result of zbcclAllReduceQuantized: `inputs` by rank, each of `count` elements.
Bytes quantized_sum_reference(const std::vector<const void*>& inputs, size_t count,
                              zbcclDataType_t type, bool int8);

// An element of a float type of up to 32 bits, and the canonical bits of a value rounded to it.
float load_float(zbcclDataType_t type, const void* data, size_t index);
void store_float(zbcclDataType_t type, void* data, size_t index, float value);

}  // namespace zbccl::test
