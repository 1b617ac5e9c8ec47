#include "gpu/fused_reference.h"

#include <bit>
#include <cmath>
#include <limits>

namespace zbccl::test {
namespace {

using kernels::test::decode;
using kernels::test::encode;
using kernels::test::get_element;
using kernels::test::set_element;

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
    result.codes[i] = static_cast<uint8_t>(encode(DataType::kE4m3, scaled));
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
    uint64_t bits = get_element(norm.type, x, i);
    if (residual != nullptr) {
      const float sum =
          decode(norm.type, bits) + decode(norm.type, get_element(norm.type, residual, i));
      bits = encode(norm.type, sum);
    }
    set_element(norm.type, result.residual_out.data(), i, bits);
    r[i] = decode(norm.type, bits);
  }
  const float mean = sum_of_squares(r) / static_cast<float>(norm.hidden);
  const float factor = 1.0F / std::sqrt(mean + norm.epsilon);
  std::vector<float> y(count);
  for (size_t i = 0; i < count; ++i) {
    const float w = decode(norm.type, get_element(norm.type, weight, i));
    const float by = norm.one_plus_weight ? 1.0F + w : w;
    const float normalised = r[i] * factor;
    y[i] = normalised * by;
    set_element(norm.type, result.out.data(), i, encode(norm.type, y[i]));
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
      const uint64_t code = encode(DataType::kE4m3, scaled);
      result.codes.push_back(static_cast<int>(code));
      back = decode(DataType::kE4m3, code);
    }
    result.values.push_back(back * scale);
  }
  return result;
}

}  // namespace zbccl::test
