// The device's arithmetic, compiled for the host, against the host kernels: every type, operator
// and number of ranks, bit for bit.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

#include "cuda_numbers_cases.h"
#include "kernels/cuda/numbers.h"

namespace zbccl::cuda::test {
namespace {

struct Case {
  DataType type;
  RedOp op;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (int t = 0; t < kNumDataTypes; ++t) {
    for (int o = 0; o < kNumRedOps; ++o) {
      cases.push_back({static_cast<DataType>(t), static_cast<RedOp>(o)});
    }
  }
  return cases;
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::string(type_name(info.param.type)) + "_" + op_name(info.param.op);
}

constexpr DataType kFloatTypes[] = {DataType::kF32, DataType::kF16, DataType::kBf16,
                                    DataType::kE4m3, DataType::kE5m2};

std::vector<DataType> all_types() {
  std::vector<DataType> types;
  for (int t = 0; t < kNumDataTypes; ++t) types.push_back(static_cast<DataType>(t));
  return types;
}

std::string name_of_type(const ::testing::TestParamInfo<DataType>& info) {
  return type_name(info.param);
}

std::vector<Pack> packs_of(const std::vector<Bytes>& blocks) {
  std::vector<Pack> packs;
  for (const Bytes& block : blocks) {
    const size_t before = packs.size();
    packs.resize(before + block.size() / sizeof(Pack));
    std::memcpy(packs.data() + before, block.data(), block.size());
  }
  return packs;
}

class CudaNumbersTest : public ::testing::TestWithParam<Case> {};

TEST_P(CudaNumbersTest, equal_the_host_kernels) {
  const DataType type = GetParam().type;
  const RedOp op = GetParam().op;
  for (const int nranks : kRankCounts) {
    for (const Operands& operands : operand_sets(type, nranks)) {
      const Bytes expected = host_result(type, op, operands);
      const std::vector<Pack> in = packs_of(operands.of_rank);
      const size_t packs = expected.size() / sizeof(Pack);
      Bytes got(expected.size());
      with_type(type, [&]<DataType kType>() {
        for (size_t i = 0; i < packs; ++i) {
          const Pack result = reduce_pack<kType>(in.data() + i, packs, nranks, op);
          std::memcpy(got.data() + i * sizeof(Pack), &result, sizeof result);
          if constexpr (Vec<kType>::kHasPoison) {
            ASSERT_FALSE(Vec<kType>::poisoned(result)) << "a result looks like poison";
          }
        }
      });
      ASSERT_TRUE(got == expected) << kernels::test::describe_difference(
          type, op, operands.of_rank, got.data(), expected.data(), operands.count);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaNumbersTest, ::testing::ValuesIn(all_cases()), case_name);

class CudaNumbersTypeTest : public ::testing::TestWithParam<DataType> {};
class CudaNumbersFloatTest : public ::testing::TestWithParam<DataType> {};

// Words of poison in every place: none is left, and sums come out as of the words themselves.
TEST_P(CudaNumbersFloatTest, poison_is_recognised_and_replaced) {
  with_type(GetParam(), []<DataType kType>() {
    using V = Vec<kType>;
    if constexpr (V::kHasPoison) {
      const Bytes data = kernels::test::random_elements(kType, 4096, 7);
      std::vector<Pack> others = packs_of({data});
      for (Pack& x : others) {
        for (uint32_t& word : x.w) word = word == kPoisonWord ? 0 : word;
      }
      for (size_t i = 0; i < others.size(); ++i) {
        ASSERT_FALSE(V::poisoned(others[i]));
        Pack x = others[i];
        for (size_t w = 0; w < 4; ++w) {
          if ((i >> w & 1) != 0) x.w[w] = kPoisonWord;
        }
        ASSERT_EQ(V::poisoned(x), i % 16 != 0);
        const Pack clean = V::without_poison(x);
        ASSERT_FALSE(V::poisoned(clean));
        if (i % 16 == 0) {
          ASSERT_EQ(std::memcmp(&clean, &x, sizeof x), 0);
        }
        const Pack with[2] = {x, others[0]};
        const Pack without[2] = {clean, others[0]};
        for (int op = 0; op < kNumRedOps; ++op) {
          const Pack a = reduce_pack<kType>(with, 1, 2, static_cast<RedOp>(op));
          const Pack b = reduce_pack<kType>(without, 1, 2, static_cast<RedOp>(op));
          ASSERT_EQ(std::memcmp(&a, &b, sizeof a), 0);
        }
      }
    }
  });
}

// Single elements convert as packs do.
TEST_P(CudaNumbersFloatTest, elements_convert_as_packs_do) {
  with_type(GetParam(), []<DataType kType>() {
    using V = Vec<kType>;
    if constexpr (std::is_same_v<typename V::Acc, float>) {
      std::mt19937 random(3);
      for (int i = 0; i < 200000; ++i) {
        typename V::Sum sum;
        const auto bits = static_cast<uint32_t>(random());
        // Of every size, and around the formats' limits.
        const float v = float_of(i % 2 == 0 ? bits : 0x38000000U + (bits & 0x8FFFFFFFU));
        for (float& lane : sum.lane) lane = v;
        const Pack pack = V::finish(sum, RedOp::kSum, 2);
        typename V::Bits code;
        std::memcpy(&code, &pack, sizeof code);
        ASSERT_EQ(V::from_float(v), code) << v;
        V::first(sum, pack);
        const uint32_t back = bits_of(V::to_float(code));
        ASSERT_EQ(back, bits_of(sum.lane[V::kLanes - 1])) << v;
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaNumbersFloatTest, ::testing::ValuesIn(kFloatTypes), name_of_type);

// The accumulator of one operand gives the operand back, but for NaN.
TEST_P(CudaNumbersTypeTest, one_operand_comes_back) {
  with_type(GetParam(), []<DataType kType>() {
    using V = Vec<kType>;
    const size_t count = type_size(kType) <= 2 ? size_t{1} << (8 * type_size(kType)) : 65536;
    Bytes data = kernels::test::random_elements(kType, count, 9);
    for (size_t i = 0; type_size(kType) <= 2 && i < count; ++i) {
      kernels::test::set_element(kType, data.data(), i, i);
    }
    for (const Pack& x : packs_of({data})) {
      const Pack result = reduce_pack<kType>(&x, 0, 1, RedOp::kSum);
      Bytes in(sizeof x);
      Bytes out(sizeof x);
      std::memcpy(in.data(), &x, sizeof x);
      std::memcpy(out.data(), &result, sizeof x);
      for (size_t i = 0; i < V::kLanes; ++i) {
        const uint64_t a = kernels::test::get_element(kType, in.data(), i);
        const uint64_t b = kernels::test::get_element(kType, out.data(), i);
        if (a != b) {
          ASSERT_TRUE(is_float(kType)) << a;
          ASSERT_EQ(kernels::test::reference(kType, RedOp::kSum, {a, 0}, 2), b) << a;
        }
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaNumbersTypeTest, ::testing::ValuesIn(all_types()), name_of_type);

}  // namespace
}  // namespace zbccl::cuda::test
