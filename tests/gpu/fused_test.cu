// Residual addition, RMSNorm and quantisation as device functions: bit for bit as the scalar
// reference, whatever the number of threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <tuple>

#include "gpu/device_array.h"
#include "kernels/cuda/rms_norm.cuh"
#include "reduce_reference.h"
#include "support/fused_reference.h"

namespace zbccl::test {
namespace {

using cuda::Code;

using cuda::NormSpec;
using cuda::NormTarget;
using cuda::Pack;
using kernels::test::decode;
using kernels::test::encode;
using kernels::test::set_element;

// --- rows ---

constexpr int kRows = 7;
constexpr int kBlocks = 2;  // so that a block has several rows

struct Rows {
  const Pack* x;
  NormTarget target;
};

// With a warp behind those that have elements.
template <DataType kType, int kPacks>
__global__ void __launch_bounds__(544)
    norm_rows(const __grid_constant__ NormSpec spec, const __grid_constant__ Rows rows) {
  extern __shared__ float shared[];
  cuda::RowNorm<kType, kPacks> norm(spec, shared, static_cast<int>(blockDim.x) - 32);
  for (int r = static_cast<int>(blockIdx.x); r < kRows; r += static_cast<int>(gridDim.x)) {
    norm.prefetch(r);
    Pack x[kPacks];
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      if (norm.mine(j)) x[j] = rows.x[r * norm.packs() + norm.index(j)];
    }
    norm.finish(x, r, &rows.target, 1);
  }
}

// The fewest packs for each thread that such a row needs.
template <DataType kType>
void launch_norm(const NormSpec& spec, const Rows& rows, int threads) {
  const size_t shared = static_cast<size_t>(cuda::norm_shared_floats(spec.hidden)) * sizeof(float);
  const int packs = (spec.hidden / 8 + threads - 1) / threads;
  if (packs <= 1) {
    norm_rows<kType, 1><<<kBlocks, threads + 32, shared>>>(spec, rows);
  } else if (packs <= 2) {
    norm_rows<kType, 2><<<kBlocks, threads + 32, shared>>>(spec, rows);
  } else {
    ASSERT_LE(packs, 4);
    norm_rows<kType, 4><<<kBlocks, threads + 32, shared>>>(spec, rows);
  }
}

// Rows of ordinary numbers, and one each of zeros, of tiny and of large numbers, and with NaN and
// infinite ones.
Bytes make_rows(DataType type, int hidden, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto count = static_cast<size_t>(kRows) * static_cast<size_t>(hidden);
  Bytes rows(2 * count);
  for (size_t i = 0; i < count; ++i) {
    float v = normal(random);
    switch (i / static_cast<size_t>(hidden)) {
      case 1: v = 0; break;
      case 2: v *= 1e-7F; break;
      case 3: v *= 2e4F; break;
      case 4: v = random() % 500 == 0 ? NAN : v; break;
      case 5: v = random() % 500 == 0 ? INFINITY : v; break;
      default: break;
    }
    set_element(type, rows.data(), i, encode(type, v));
  }
  return rows;
}

DeviceArray<Pack> upload(const Bytes& bytes) {
  std::vector<Pack> packs(bytes.size() / sizeof(Pack));
  std::memcpy(packs.data(), bytes.data(), bytes.size());
  return DeviceArray<Pack>(packs);
}

class Outputs {
 public:
  explicit Outputs(int hidden)
      : residual_out(kRows * hidden / 8),
        out(kRows * hidden / 8),
        codes(kRows * hidden / 16 + 1),
        scales(kRows * (hidden / 128 + 1)),
        exponents(kRows * (hidden / 128 + 1)) {}
  DeviceArray<Pack> residual_out;
  DeviceArray<Pack> out;
  DeviceArray<Pack> codes;
  DeviceArray<float> scales;  // of a group next to each other, one for each row
  DeviceArray<uint8_t> exponents;
};

testing::AssertionResult same_row(const DeviceArray<Pack>& got, int row, const Bytes& expected) {
  const std::vector<Pack> packs = got.download();
  const auto* const data = reinterpret_cast<const uint8_t*>(packs.data());
  const size_t begin = static_cast<size_t>(row) * expected.size();
  for (size_t i = 0; i < expected.size(); ++i) {
    if (data[begin + i] != expected[i]) {
      return testing::AssertionFailure() << "row " << row << ", byte " << i << ": "
                                         << +data[begin + i] << ", expected " << +expected[i];
    }
  }
  return testing::AssertionSuccess();
}

bool same_float(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

void expect_rows(const Outputs& outputs, const NormCase& norm,
                 const std::vector<NormResult>& expected) {
  const std::vector<float> scales = outputs.scales.download();
  const std::vector<uint8_t> exponents = outputs.exponents.download();
  for (int r = 0; r < kRows; ++r) {
    const NormResult& row = expected[static_cast<size_t>(r)];
    ASSERT_TRUE(same_row(outputs.residual_out, r, row.residual_out)) << "residual_out";
    ASSERT_TRUE(same_row(outputs.out, r, row.out)) << "out";
    if (norm.scales != Scales::kNone) {
      ASSERT_TRUE(same_row(outputs.codes, r, row.codes)) << "codes";
    }
    for (size_t g = 0; g < row.scales.size(); ++g) {
      const size_t at = g * kRows + static_cast<size_t>(r);
      ASSERT_TRUE(same_float(scales[at], row.scales[g])) << "scale of group " << g;
      if (norm.scales == Scales::kGroupPowerOfTwo) {
        ASSERT_EQ(exponents[at], row.exponents[g]);
      }
    }
  }
}

using NormParameters = std::tuple<DataType, Scales, bool>;  // and whether there is a residual

class GpuNormTest : public OnGpu<testing::TestWithParam<NormParameters>> {};

TEST_P(GpuNormTest, equals_the_reference_with_any_number_of_threads) {
  const auto [type, scales, has_residual] = GetParam();
  for (const int hidden : {128, 512, 1536, 2048, 2880, 4096, 5120, 7168, 8192, 16384}) {
    // Groups of 128 fill a row; else rows need whole packs only.
    const bool groups = scales == Scales::kGroup || scales == Scales::kGroupPowerOfTwo;
    if (groups && hidden % 128 != 0) continue;
    NormCase norm = {
        static_cast<zbcclDataType_t>(type), hidden, 1e-6F, hidden % 1024 == 0, scales, 0.0371F};
    const Bytes x = make_rows(type, hidden, 1);
    const Bytes residual = make_rows(type, hidden, 2);
    const Bytes weight = make_rows(type, hidden, 3);
    std::vector<NormResult> expected;
    for (size_t r = 0; r < kRows; ++r) {
      const size_t at = r * 2 * static_cast<size_t>(hidden);
      expected.push_back(
          norm_reference(norm, &x[at], has_residual ? &residual[at] : nullptr, weight.data()));
    }
    const DeviceArray<Pack> device_x = upload(x);
    const DeviceArray<Pack> device_weight = upload(weight);
    for (const int threads : {64, 96, 128, 256, 448, 512}) {
      if (hidden / 8 > 4 * threads) continue;
      SCOPED_TRACE("hidden " + std::to_string(hidden) + ", threads " + std::to_string(threads));
      const Outputs outputs(hidden);
      const DeviceArray<Pack> device_residual = upload(residual);
      NormSpec spec;
      spec.residual = has_residual ? device_residual.get() : nullptr;
      spec.weight = device_weight.get();
      spec.hidden = hidden;
      spec.epsilon = norm.epsilon;
      spec.inverse_scale = 1.0F / norm.tensor_scale;
      spec.form = static_cast<NormCodes>(scales);
      spec.one_plus_weight = norm.one_plus_weight;
      spec.row_stride = 1;
      spec.group_stride = kRows;
      const bool powers = scales == Scales::kGroupPowerOfTwo;
      const Rows rows = {device_x.get(),
                         {{outputs.residual_out.get(), outputs.out.get(), outputs.codes.get(),
                           outputs.scales.get(), powers ? outputs.exponents.get() : nullptr}}};
      if (type == DataType::kBf16) {
        launch_norm<DataType::kBf16>(spec, rows, threads);
      } else {
        launch_norm<DataType::kF16>(spec, rows, threads);
      }
      wait_for_kernels();
      expect_rows(outputs, norm, expected);
      if (HasFatalFailure()) return;
    }
  }
}

std::string norm_name(const testing::TestParamInfo<NormParameters>& test) {
  constexpr const char* kScales[] = {"no_codes", "tensor_scale", "group_scales", "powers_of_two"};
  const auto [type, scales, has_residual] = test.param;
  return std::string(type_name(type)) + "_" + kScales[static_cast<size_t>(scales)] +
         (has_residual ? "_residual" : "");
}

INSTANTIATE_TEST_SUITE_P(All, GpuNormTest,
                         testing::Combine(testing::Values(DataType::kBf16, DataType::kF16),
                                          testing::Values(Scales::kNone, Scales::kTensor,
                                                          Scales::kGroup, Scales::kGroupPowerOfTwo),
                                          testing::Bool()),
                         norm_name);

// --- quantised groups ---

template <DataType kType, Code kCode>
__global__ void quantize_groups(const Pack* in, Pack* codes, float* scales, float* values,
                                Pack* rounded, int threads) {
  using Elements = cuda::Sixteen<kType>;
  using Groups = cuda::Quantizer<kCode>;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= threads) return;  // whole warps
  float v[16];
  Elements::widen(v, reinterpret_cast<const typename Elements::Packs*>(in)[i]);
  const typename Groups::Block block = Groups::quantize(v);
  codes[i] = block.codes;
  if (i % Groups::kThreads == 0) scales[i / Groups::kThreads] = block.scale;
  Groups::dequantize(v, block.codes, block.scale);
  for (int e = 0; e < 16; ++e) values[i * 16 + e] = v[e];
  reinterpret_cast<typename Elements::Packs*>(rounded)[i] = Elements::narrow(v);
}

constexpr size_t kGroups = 256;
constexpr size_t kElements = kGroups * 128;

// Groups of many sizes; some of zeros or denormals only, some with values that are not finite.
Bytes make_groups(DataType type) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  Bytes groups(kElements * type_size(type));
  for (size_t i = 0; i < kElements; ++i) {
    const size_t group = i / 128;
    float v = normal(random) * std::ldexp(1.0F, static_cast<int>(group % 24) - 12);
    if (group % 16 == 3) v = 0;
    if (group % 16 == 5) v *= 1e-38F;
    if (group % 16 == 7 && random() % 64 == 0) v = NAN;
    if (group % 16 == 9 && random() % 64 == 0) v = random() % 2 == 0 ? INFINITY : -INFINITY;
    set_element(type, groups.data(), i, encode(type, v));
  }
  return groups;
}

template <DataType kType>
void launch_quantize(Code code, const Pack* in, Pack* codes, float* scales, float* values,
                     Pack* rounded) {
  constexpr int kThreads = static_cast<int>(kElements / 16);
  if (code == Code::kE4m3) {
    quantize_groups<kType, Code::kE4m3>
        <<<kThreads / 128, 128>>>(in, codes, scales, values, rounded, kThreads);
  } else {
    quantize_groups<kType, Code::kInt8>
        <<<kThreads / 128, 128>>>(in, codes, scales, values, rounded, kThreads);
  }
}

using QuantizeParameters = std::tuple<DataType, Code>;

class GpuQuantizeTest : public OnGpu<testing::TestWithParam<QuantizeParameters>> {};

void expect_values(DataType type, const QuantizedGroups& expected, const std::vector<float>& values,
                   const std::vector<Pack>& rounded) {
  Bytes bytes(rounded.size() * sizeof(Pack));
  std::memcpy(bytes.data(), rounded.data(), bytes.size());
  for (size_t i = 0; i < kElements; ++i) {
    if (std::isnan(expected.values[i])) {
      ASSERT_TRUE(std::isnan(values[i])) << i;
    } else {
      ASSERT_TRUE(same_float(values[i], expected.values[i]))
          << i << ": " << values[i] << ", expected " << expected.values[i];
    }
    ASSERT_EQ(kernels::test::get_element(type, bytes.data(), i), encode(type, expected.values[i]));
  }
}

// Half a step of the code, and what the roundings of the scale may add to it.
void expect_close(Code code, const std::vector<float>& in, const QuantizedGroups& expected) {
  for (size_t i = 0; i < kElements; ++i) {
    const float scale = expected.scales[i / 128];
    if (!std::isfinite(expected.values[i])) continue;
    const float step =
        code == Code::kInt8 ? 0.5F * scale : std::max(std::fabs(in[i]) / 16, scale / 1024);
    ASSERT_LE(std::fabs(in[i] - expected.values[i]), 1.0001F * step) << i;
  }
}

TEST_P(GpuQuantizeTest, equals_the_reference) {
  const auto [type, code] = GetParam();
  const Bytes groups = make_groups(type);
  std::vector<float> in;
  for (size_t i = 0; i < kElements; ++i) {
    in.push_back(decode(type, kernels::test::get_element(type, groups.data(), i)));
  }
  const QuantizedGroups expected = quantize_reference(code == Code::kInt8, in);
  const DeviceArray<Pack> device_in = upload(groups);
  const DeviceArray<Pack> codes(kElements / 16);
  const DeviceArray<float> scales(kGroups);
  const DeviceArray<float> values(kElements);
  const DeviceArray<Pack> rounded(device_in.count());
  switch (type) {
    case DataType::kF32:
      launch_quantize<DataType::kF32>(code, device_in.get(), codes.get(), scales.get(),
                                      values.get(), rounded.get());
      break;
    case DataType::kF16:
      launch_quantize<DataType::kF16>(code, device_in.get(), codes.get(), scales.get(),
                                      values.get(), rounded.get());
      break;
    default:
      launch_quantize<DataType::kBf16>(code, device_in.get(), codes.get(), scales.get(),
                                       values.get(), rounded.get());
      break;
  }
  wait_for_kernels();
  const std::vector<float> got_scales = scales.download();
  for (size_t g = 0; g < kGroups; ++g) {
    const bool nan = std::isnan(expected.scales[g]);
    ASSERT_TRUE(nan ? std::isnan(got_scales[g]) : same_float(got_scales[g], expected.scales[g]))
        << "group " << g << ": " << got_scales[g] << ", expected " << expected.scales[g];
  }
  for (const Pack& pack : codes.download()) {
    for (const uint32_t word : pack.w) ASSERT_NE(word, cuda::kPoisonWord);
  }
  expect_values(type, expected, values.download(), rounded.download());
  if (HasFatalFailure()) return;
  expect_close(code, in, expected);
}

std::string quantize_name(const testing::TestParamInfo<QuantizeParameters>& test) {
  const auto [type, code] = test.param;
  return std::string(type_name(type)) + (code == Code::kInt8 ? "_int8" : "_e4m3");
}

INSTANTIATE_TEST_SUITE_P(All, GpuQuantizeTest,
                         testing::Combine(testing::Values(DataType::kF32, DataType::kF16,
                                                          DataType::kBf16),
                                          testing::Values(Code::kE4m3, Code::kInt8)),
                         quantize_name);

}  // namespace
}  // namespace zbccl::test
