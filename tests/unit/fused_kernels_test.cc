// The host kernels of the fused operations, on every instruction set of this machine, against plain
// scalar code.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>

#include "base/format.h"
#include "kernels/norm.h"
#include "kernels/quantize.h"
#include "reduce_reference.h"
#include "support/data.h"
#include "support/fused_reference.h"

namespace zbccl::kernels::test {
namespace {

using zbccl::test::norm_reference;
using zbccl::test::NormCase;
using zbccl::test::NormResult;
using zbccl::test::quantized_sum_reference;
using zbccl::test::Scales;

zbcclDataType_t public_type(DataType type) { return static_cast<zbcclDataType_t>(type); }

// Ordinary numbers; in some rows all are tiny, large, zeros, or special.
Bytes make_rows(DataType type, size_t rows, size_t hidden, uint64_t seed) {
  Bytes data(rows * hidden * type_size(type));
  std::mt19937 random(static_cast<uint32_t>(seed));
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < rows * hidden; ++i) {
    float v = normal(random);
    switch (i / hidden % 6) {
      case 1: v = 0; break;
      case 2: v *= 1e-7F; break;
      case 3: v *= 2e4F; break;
      case 4: v = random() % 100 == 0 ? NAN : v; break;
      case 5: v = random() % 100 == 0 ? INFINITY : v; break;
      default: break;
    }
    zbccl::test::store_float(public_type(type), data.data(), i, v);
  }
  return data;
}

struct Results {
  Bytes residual_out, out, codes, exponents;
  std::vector<float> scales;
  Results(size_t rows, size_t hidden)
      : residual_out(rows * hidden * 2, 0xA5),
        out(rows * hidden * 2, 0xA5),
        codes(rows * hidden, 0xA5),
        exponents((rows + 1) * (hidden / 128 + 1), 0xA5),
        scales((rows + 1) * (hidden / 128 + 1), 0.25F) {}
  NormOutputs outputs(size_t rows, NormCodes form) {
    const bool groups = form == NormCodes::kGroupScales || form == NormCodes::kGroupPowersOfTwo;
    NormOutputs to;
    to.residual_out = residual_out.data();
    to.out = out.data();
    if (form != NormCodes::kNone) to.codes = codes.data();
    if (groups) to.scales = scales.data();
    if (form == NormCodes::kGroupPowersOfTwo) to.exponents = exponents.data();
    to.row_stride = 1;
    to.group_stride = rows + 1;
    return to;
  }
};

template <typename T>
bool same(const T* got, const T* expected, size_t count) {
  return count == 0 || std::memcmp(got, expected, count * sizeof(T)) == 0;
}

void expect_row(const Results& got, const NormResult& expected, size_t row, size_t rows) {
  const size_t hidden = expected.out.size() / 2;
  ASSERT_TRUE(same(&got.residual_out[row * hidden * 2], expected.residual_out.data(), 2 * hidden))
      << "residual_out of row " << row;
  ASSERT_TRUE(same(&got.out[row * hidden * 2], expected.out.data(), 2 * hidden))
      << "out of " << row;
  ASSERT_TRUE(same(&got.codes[row * hidden], expected.codes.data(), expected.codes.size()))
      << "codes of row " << row;
  for (size_t g = 0; g < expected.scales.size(); ++g) {
    ASSERT_TRUE(same(&got.scales[row + g * (rows + 1)], &expected.scales[g], 1))
        << "row " << row << ", group " << g;
  }
}

using NormParameters = std::tuple<DataType, NormCodes, bool>;

class NormRowsTest : public EveryTarget, public ::testing::WithParamInterface<NormParameters> {};

TEST_P(NormRowsTest, equal_the_reference) {
  const auto [type, form, has_residual] = GetParam();
  constexpr size_t kRows = 6;
  for (const size_t hidden : {8, 120, 128, 256, 264, 384, 640, 2048, 2176, 8320}) {
    const bool groups = form == NormCodes::kGroupScales || form == NormCodes::kGroupPowersOfTwo;
    if (groups && hidden % 128 != 0) continue;
    const Norm norm = {type, hidden, 1e-6F, hidden % 256 == 0, form, 0.0371F};
    const NormCase plain = {public_type(type),    static_cast<int>(hidden),  norm.epsilon,
                            norm.one_plus_weight, static_cast<Scales>(form), norm.scale};
    const Bytes x = make_rows(type, kRows, hidden, 1);
    const Bytes residual = make_rows(type, kRows, hidden, 2);
    const Bytes weight = make_rows(type, 1, hidden, 3);
    std::vector<NormResult> expected;
    for (size_t r = 0; r < kRows; ++r) {
      const size_t at = r * hidden * 2;
      expected.push_back(
          norm_reference(plain, &x[at], has_residual ? &residual[at] : nullptr, weight.data()));
    }
    for_each_target([&] {
      SCOPED_TRACE(hidden);
      Results first(kRows, hidden);
      Results second(kRows, hidden);
      const NormOutputs to[] = {first.outputs(kRows, form), second.outputs(kRows, form)};
      NormScratch scratch;
      // Two shares, as two ranks would have.
      norm_rows(norm, x.data(), has_residual ? residual.data() : nullptr, weight.data(), 0, 2, to,
                2, scratch);
      norm_rows(norm, &x[2 * hidden * 2], has_residual ? residual.data() : nullptr, weight.data(),
                2, kRows - 2, to, 2, scratch);
      for (size_t r = 0; r < kRows; ++r) {
        expect_row(first, expected[r], r, kRows);
        if (HasFatalFailure()) return;
        expect_row(second, expected[r], r, kRows);
        if (HasFatalFailure()) return;
        for (size_t g = 0; form == NormCodes::kGroupPowersOfTwo && g < hidden / 128; ++g) {
          ASSERT_EQ(first.exponents[r + g * (kRows + 1)], expected[r].exponents[g]);
        }
      }
      // What lies between the strides is not written.
      for (size_t g = 0; groups && g < hidden / 128; ++g) {
        ASSERT_EQ(first.scales[kRows + g * (kRows + 1)], 0.25F);
      }
    });
    if (HasFatalFailure()) return;
  }
}

TEST_F(EveryTarget, a_norm_in_place_is_the_same) {
  constexpr size_t kHidden = 2056;
  const Norm norm = {DataType::kBf16, kHidden, 1e-5F, false, NormCodes::kNone, 1};
  const Bytes x = make_rows(norm.type, 1, kHidden, 5);
  const Bytes weight = make_rows(norm.type, 1, kHidden, 6);
  const NormResult expected =
      norm_reference({zbcclBfloat16, kHidden, norm.epsilon, false, Scales::kNone, 1}, x.data(),
                     x.data(), weight.data());
  for_each_target([&] {
    Bytes in_place = x;
    Bytes residual = x;
    NormOutputs to;
    to.out = in_place.data();
    to.residual_out = residual.data();
    NormScratch scratch;
    norm_rows(norm, in_place.data(), residual.data(), weight.data(), 0, 1, &to, 1, scratch);
    EXPECT_EQ(expected.out, in_place);
    EXPECT_EQ(expected.residual_out, residual);
  });
}

std::string norm_name(const ::testing::TestParamInfo<NormParameters>& test) {
  constexpr const char* kForms[] = {"no_codes", "tensor_scale", "group_scales", "powers_of_two"};
  const auto [type, form, has_residual] = test.param;
  return std::string(type_name(type)) + "_" + kForms[static_cast<size_t>(form)] +
         (has_residual ? "_residual" : "");
}

INSTANTIATE_TEST_SUITE_P(
    All, NormRowsTest,
    ::testing::Combine(::testing::Values(DataType::kBf16, DataType::kF16),
                       ::testing::Values(NormCodes::kNone, NormCodes::kTensorScale,
                                         NormCodes::kGroupScales, NormCodes::kGroupPowersOfTwo),
                       ::testing::Bool()),
    norm_name);

// --- quantised sums ---

// Groups of many sizes; some of zeros or denormals only, some with values that are not finite.
Bytes make_groups(DataType type, size_t count, uint64_t seed) {
  std::mt19937 random(static_cast<uint32_t>(seed));
  std::normal_distribution<float> normal;
  Bytes groups(count * type_size(type));
  for (size_t i = 0; i < count; ++i) {
    const size_t group = i / 128;
    float v = normal(random) * std::ldexp(1.0F, static_cast<int>(group % 24) - 12);
    if (group % 16 == 3) v = 0;
    if (group % 16 == 5) v *= 1e-38F;
    if (group % 16 == 7 && random() % 64 == 0) v = NAN;
    if (group % 16 == 9 && random() % 64 == 0) v = random() % 2 == 0 ? INFINITY : -INFINITY;
    zbccl::test::store_float(public_type(type), groups.data(), i, v);
  }
  return groups;
}

using QuantizedParameters = std::tuple<DataType, DataType>;

class QuantizedSumTest : public EveryTarget,
                         public ::testing::WithParamInterface<QuantizedParameters> {};

TEST_P(QuantizedSumTest, equals_the_reference) {
  const auto [type, code] = GetParam();
  for (const size_t count : {1, 127, 128, 129, 1000, 3 * 1024 + 5}) {
    for (const size_t ranks : {2, 3, 8}) {
      std::vector<Bytes> inputs;
      std::vector<const void*> src;
      for (size_t k = 0; k < ranks; ++k) inputs.push_back(make_groups(type, count, 10 * count + k));
      for (const Bytes& input : inputs) src.push_back(input.data());
      const Bytes expected =
          quantized_sum_reference(src, count, public_type(type), code == DataType::kI8);
      for_each_target([&] {
        SCOPED_TRACE(format("{} x {}", ranks, count));
        // One destination is the first source.
        Bytes in_place = inputs[0];
        std::vector<const void*> sources = src;
        sources[0] = in_place.data();
        Bytes apart(expected.size() + 1, 0xA5);
        void* const to[] = {in_place.data(), apart.data()};
        sum_quantized({sources.data(), ranks, to, 2, count, type, code});
        ASSERT_EQ(expected, in_place);
        ASSERT_TRUE(same(apart.data(), expected.data(), expected.size()));
        ASSERT_EQ(apart.back(), 0xA5);
      });
      if (HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedSumTest,
                         ::testing::Combine(::testing::Values(DataType::kF32, DataType::kF16,
                                                              DataType::kBf16),
                                            ::testing::Values(DataType::kE4m3, DataType::kI8)),
                         [](const auto& test) {
                           return std::string(type_name(std::get<0>(test.param))) + "_" +
                                  type_name(std::get<1>(test.param));
                         });

}  // namespace
}  // namespace zbccl::kernels::test
