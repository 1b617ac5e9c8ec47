// The host kernels for rows, on every instruction set of this machine, against plain scalar code.
#include "kernels/rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/host/targets.h"
#include "support/moe_reference.h"

namespace zbccl::kernels::test {
namespace {

using zbccl::test::MoeCodes;
using zbccl::test::MoeTerm;
using zbccl::test::reference_codes;
using zbccl::test::reference_sum;
using zbccl::test::store_element;
using Bytes = std::vector<std::byte>;

constexpr DataType kTypes[] = {DataType::kF32, DataType::kF16, DataType::kBf16};
constexpr std::byte kPoison{0xA5};

int number(DataType type) { return static_cast<int>(type); }

enum class Values { kOrdinary, kTiny, kLarge, kZero, kNan, kInfinite, kNumValues };

Bytes make_row(DataType type, size_t count, Values values, uint32_t seed) {
  Bytes row(count * type_size(type) + 4);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < count; ++i) {
    float v = normal(random);
    switch (values) {
      case Values::kTiny: v *= 1e-8F; break;
      case Values::kLarge: v *= 3e4F; break;
      case Values::kZero: v = random() % 2 == 0 ? 0.0F : -0.0F; break;
      case Values::kNan: v = random() % 50 == 0 ? NAN : v; break;
      case Values::kInfinite: v = random() % 50 == 0 ? INFINITY : v; break;
      default: break;
    }
    store_element(row.data(), i, number(type), v);
  }
  return row;
}

template <typename Body>
void on_every_target(Body&& body) {
  for (const Target* target : available_targets()) {
    SCOPED_TRACE(target->name);
    set_target(target);
    body();
  }
  set_target(nullptr);
}

TEST(SumRows, IsExact) {
  on_every_target([] {
    uint32_t seed = 1;
    for (const DataType type : kTypes) {
      for (const size_t count : {1, 3, 8, 17, 64, 129, 300}) {
        for (const size_t rows : {0, 1, 2, 5, 32}) {
          for (int form = 0; form < 8; ++form) {
            const bool weighted = form % 2 == 1;
            const auto values = static_cast<Values>(seed % 6);
            std::vector<Bytes> data;
            std::vector<const void*> src;
            std::vector<float> weights;
            std::vector<MoeTerm> terms;
            for (size_t r = 0; r < rows; ++r) {
              data.push_back(make_row(type, count, values, ++seed));
              weights.push_back(static_cast<float>(seed % 13) / 7.0F - 0.5F);
            }
            for (size_t r = 0; r < rows; ++r) {
              src.push_back(data[r].data());
              terms.push_back({static_cast<int>(r), data[r].data(), weights[r]});
            }
            const Bytes bias0 = make_row(type, count, Values::kOrdinary, ++seed);
            const Bytes bias1 = make_row(type, count, Values::kTiny, ++seed);
            RowSum sum{};
            sum.src = src.data();
            sum.weights = weighted ? weights.data() : nullptr;
            sum.num_src = rows;
            sum.bias[0] = (form & 2) != 0 ? bias0.data() : nullptr;
            sum.bias[1] = (form & 4) != 0 ? bias1.data() : nullptr;
            sum.count = count;
            sum.type = type;
            Bytes got(count * type_size(type) + 64, kPoison);
            Bytes want = got;
            sum.out = got.data();
            sum_rows(sum);
            reference_sum(terms, weighted, false, sum.bias[0], sum.bias[1],
                          static_cast<int64_t>(count), number(type), want.data());
            ASSERT_EQ(want, got) << type_name(type) << " count " << count << " rows " << rows
                                 << " form " << form;
          }
        }
      }
    }
  });
}

void expect_codes(DataType type, size_t count, Values values, int quant) {
  const Bytes row = make_row(type, count, values, static_cast<uint32_t>(count + 7));
  const MoeCodes want =
      reference_codes(row.data(), static_cast<int64_t>(count), number(type), quant);
  RowQuantization call{};
  call.src = row.data();
  call.count = count;
  call.type = type;
  call.code = quant == zbcclMoeQuantInt8 ? DataType::kI8 : DataType::kE4m3;
  call.power_of_two = quant == zbcclMoeQuantFp8Pow2;
  std::vector<uint8_t> codes(count + 64, 0xA5);
  std::vector<float> scales(want.scales.size() + 2, 0.25F);
  call.codes = codes.data();
  call.scales = scales.data();
  quantize_row(call);
  const std::string what = std::string(type_name(type)) + " count " + std::to_string(count) +
                           " values " + std::to_string(static_cast<int>(values)) + " quant " +
                           std::to_string(quant);
  std::vector<uint8_t> expected = want.codes;
  expected.resize(codes.size(), 0xA5);
  ASSERT_EQ(expected, codes) << what;
  for (size_t i = 0; i < scales.size(); ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, &scales[i], sizeof bits);
    constexpr uint32_t kQuarter = 0x3E800000U;
    ASSERT_EQ(i < want.scales.size() ? want.scales[i] : kQuarter, bits) << what << " scale " << i;
  }
}

TEST(QuantizeRow, IsExact) {
  on_every_target([] {
    for (const DataType type : kTypes) {
      for (const size_t count : {1, 8, 24, 128, 136, 256, 1000}) {
        for (int values = 0; values < static_cast<int>(Values::kNumValues); ++values) {
          for (const int quant : {zbcclMoeQuantFp8, zbcclMoeQuantFp8Pow2, zbcclMoeQuantInt8}) {
            expect_codes(type, count, static_cast<Values>(values), quant);
          }
        }
      }
    }
  });
}

// Every bf16 value beside one that sets the scale.
TEST(QuantizeRow, KnowsEveryValue) {
  on_every_target([] {
    Bytes row(128 * 2);
    for (uint32_t first = 0; first < 0x10000; first += 127) {
      for (uint32_t i = 0; i < 128; ++i) {
        const auto bits = static_cast<uint16_t>(i == 127 ? 0x43E0 : first + i);  // 448
        std::memcpy(row.data() + i * 2, &bits, 2);
      }
      const MoeCodes want = reference_codes(row.data(), 128, zbcclBfloat16, zbcclMoeQuantFp8);
      uint8_t codes[128];
      float scale = 0;
      RowQuantization call{row.data(), 128, DataType::kBf16, DataType::kE4m3, false, codes, &scale};
      quantize_row(call);
      ASSERT_EQ(want.codes, std::vector<uint8_t>(codes, codes + 128)) << "from " << first;
    }
  });
}

}  // namespace
}  // namespace zbccl::kernels::test
