#include "support/fused_reference.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "support/data.h"
#include "support/floats.h"

namespace zbccl::test {
namespace {

constexpr size_t kGroup = 128;
constexpr size_t kPack = 8;  // elements
constexpr size_t kRun = 32;  // packs

// Neighbours at half the distance first.
float sum_by_halves(std::vector<float> v) {
  for (size_t half = v.size() / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) v[i] = v[i] + v[i + half];
  }
  return v[0];
}

float sum_of_squares(const std::vector<float>& r) {
  std::vector<float> lanes(32);
  for (size_t run = 0; run * kRun * kPack < r.size(); ++run) {
    std::vector<float> packs(kRun);
    for (size_t p = 0; p < kRun; ++p) {
      for (size_t e = 0; e < kPack; ++e) {
        const size_t i = (run * kRun + p) * kPack + e;
        const float square = i < r.size() ? r[i] * r[i] : 0.0F;
        packs[p] = packs[p] + square;
      }
    }
    lanes[run % 32] = lanes[run % 32] + sum_by_halves(packs);
  }
  return sum_by_halves(lanes);
}

// `finite_only`: anything else makes the scale NaN.
float group_scale(const float* v, float largest_code, bool finite_only) {
  float amax = 1e-10F;
  for (size_t i = 0; i < kGroup; ++i) {
    if (finite_only && !std::isfinite(v[i])) return std::numeric_limits<float>::quiet_NaN();
    if (std::fabs(v[i]) > amax) amax = std::fabs(v[i]);
  }
  return amax / largest_code;
}

float raised_to_power_of_two(float scale) {
  int exponent = 0;
  const float fraction = std::frexp(scale, &exponent);  // [0.5, 1)
  if (std::isinf(scale) || fraction == 0.5F) return scale;
  return std::ldexp(1.0F, exponent);
}

void quantize_row(const NormCase& norm, const std::vector<float>& y, NormResult& result) {
  result.codes.resize(y.size());
  float scale = norm.tensor_scale;
  for (size_t i = 0; i < y.size(); ++i) {
    if (norm.scales != Scales::kTensor && i % kGroup == 0) {
      scale = group_scale(&y[i], 448.0F, false);
      if (norm.scales == Scales::kGroupPowerOfTwo) scale = raised_to_power_of_two(scale);
      result.scales.push_back(scale);
      result.exponents.push_back(static_cast<uint8_t>(std::bit_cast<uint32_t>(scale) >> 23));
    }
    const float inverse = 1.0F / scale;
    const float scaled = y[i] * inverse;
    result.codes[i] = static_cast<uint8_t>(encode(scaled, format_of(zbcclFloat8e4m3)));
  }
}

}  // namespace

NormResult norm_reference(const NormCase& norm, const uint8_t* x, const uint8_t* residual,
                          const uint8_t* weight) {
  const auto count = static_cast<size_t>(norm.hidden);
  NormResult result;
  result.residual_out.resize(2 * count);
  result.out.resize(2 * count);
  std::vector<float> r(count);
  for (size_t i = 0; i < count; ++i) {
    if (residual != nullptr) {
      const float sum = load_float(norm.type, x, i) + load_float(norm.type, residual, i);
      store_float(norm.type, result.residual_out.data(), i, sum);
    } else {
      std::memcpy(&result.residual_out[2 * i], x + 2 * i, 2);  // a NaN keeps its payload
    }
    r[i] = load_float(norm.type, result.residual_out.data(), i);
  }
  const float mean = sum_of_squares(r) / static_cast<float>(norm.hidden);
  const float factor = 1.0F / std::sqrt(mean + norm.epsilon);
  std::vector<float> y(count);
  for (size_t i = 0; i < count; ++i) {
    const float w = load_float(norm.type, weight, i);
    const float by = norm.one_plus_weight ? 1.0F + w : w;
    const float normalised = r[i] * factor;
    y[i] = normalised * by;
    store_float(norm.type, result.out.data(), i, y[i]);
  }
  if (norm.scales != Scales::kNone) quantize_row(norm, y, result);
  return result;
}

QuantizedGroups quantize_reference(bool int8, const std::vector<float>& values) {
  QuantizedGroups result;
  float scale = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (i % kGroup == 0) {
      scale = group_scale(&values[i], int8 ? 127.0F : 448.0F, int8);
      result.scales.push_back(scale);
    }
    const float inverse = 1.0F / scale;
    const float scaled = values[i] * inverse;
    float back;
    if (int8) {
      // Where the scale is NaN the codes are not looked at.
      const int code = std::isfinite(scaled) ? static_cast<int>(std::nearbyint(scaled)) : 0;
      result.codes.push_back(code);
      back = static_cast<float>(code);
    } else {
      const uint32_t code = encode(scaled, format_of(zbcclFloat8e4m3));
      result.codes.push_back(static_cast<int>(code));
      back = decode(code, format_of(zbcclFloat8e4m3));
    }
    result.values.push_back(back * scale);
  }
  return result;
}

Bytes quantized_sum_reference(const std::vector<const void*>& inputs, size_t count,
                              zbcclDataType_t type, bool int8) {
  const size_t element = element_size(type);
  Bytes result(count * element);
  if (inputs.size() == 1) {
    if (count > 0) std::memcpy(result.data(), inputs[0], count * element);
    return result;
  }
  // Whole groups; what is missing from the last counts as zeros.
  const size_t padded = (count + kGroup - 1) / kGroup * kGroup;
  std::vector<float> sum;
  for (const void* input : inputs) {
    std::vector<float> values(padded);
    for (size_t i = 0; i < count; ++i) values[i] = load_float(type, input, i);
    values = quantize_reference(int8, values).values;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = sum[i] + values[i];
    if (sum.empty()) sum = values;
  }
  sum = quantize_reference(int8, sum).values;
  for (size_t i = 0; i < count; ++i) store_float(type, result.data(), i, sum[i]);
  return result;
}

float load_float(zbcclDataType_t type, const void* data, size_t index) {
  const auto* const bytes = static_cast<const uint8_t*>(data);
  uint32_t bits = 0;
  std::memcpy(&bits, bytes + index * element_size(type), element_size(type));
  return type == zbcclFloat32 ? std::bit_cast<float>(bits) : decode(bits, format_of(type));
}

void store_float(zbcclDataType_t type, void* data, size_t index, float value) {
  uint32_t bits = 0;
  if (type != zbcclFloat32) {
    bits = encode(value, format_of(type));
  } else {
    bits = std::isnan(value) ? 0x7FC00000U : std::bit_cast<uint32_t>(value);
  }
  std::memcpy(static_cast<uint8_t*>(data) + index * element_size(type), &bits, element_size(type));
}

}  // namespace zbccl::test
