// NaN, zeros of both signs, infinities, denormals and overflow, in every position of a vector; and
// the caller's floating-point settings.
#include <cfenv>
#include <cstring>

#include "kernels/reduce.h"
#include "reduce_reference.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace zbccl::kernels::test {
namespace {

class ReduceSpecialTest : public EveryTarget {
 protected:
  // Reduces and compares with the reference; the result in `out` where it is wanted.
  void check(DataType type, RedOp op, const std::vector<Bytes>& data, size_t count,
             Bytes* out = nullptr) {
    std::vector<const void*> src;
    for (const Bytes& d : data) src.push_back(d.data());
    const Bytes expected = reference(type, op, data, count, data.size());
    for_each_target([&] {
      Bytes result(expected.size());
      void* const dst = result.data();
      reduce({src.data(), src.size(), &dst, 1, count, type, op, src.size(), false});
      ASSERT_EQ(result, expected) << describe_difference(type, op, data, result.data(),
                                                         expected.data(), count);
      if (out != nullptr) *out = result;
    });
  }

  uint64_t reduce_one(DataType type, RedOp op, const std::vector<uint64_t>& x) {
    std::vector<Bytes> data;
    for (const uint64_t bits : x) {
      data.emplace_back(type_size(type));
      set_element(type, data.back().data(), 0, bits);
    }
    Bytes out;
    check(type, op, data, 1, &out);
    return out.empty() ? ~uint64_t{0} : get_element(type, out.data(), 0);
  }
};

// Every pair of special values, shifted through every position of the widest vector.
TEST_F(ReduceSpecialTest, pairs_in_every_position) {
  for (int t = 0; t < kNumDataTypes; ++t) {
    const auto type = static_cast<DataType>(t);
    const std::vector<uint64_t> special = special_values(type);
    const size_t pairs = special.size() * special.size();
    for (int o = 0; o < kNumRedOps; ++o) {
      for (size_t shift = 0; shift < 64; ++shift) {
        std::vector<Bytes> data(2, Bytes((pairs + shift) * type_size(type)));
        for (size_t i = 0; i < pairs; ++i) {
          set_element(type, data[0].data(), shift + i, special[i / special.size()]);
          set_element(type, data[1].data(), shift + i, special[i % special.size()]);
        }
        check(type, static_cast<RedOp>(o), data, pairs + shift);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// One NaN among ordinary values, in every position and from every rank.
TEST_F(ReduceSpecialTest, one_nan_is_never_lost) {
  constexpr size_t kCount = 130;
  for (int t = 0; t < kNumDataTypes; ++t) {
    const auto type = static_cast<DataType>(t);
    if (!is_float(type)) continue;
    const uint64_t nan = special_values(type).back();  // negative, every payload bit set
    for (int o = 0; o < kNumRedOps; ++o) {
      for (size_t rank = 0; rank < 3; ++rank) {
        std::vector<Bytes> data(3, Bytes(kCount * type_size(type)));
        for (size_t at = 0; at < kCount; ++at) {
          set_element(type, data[rank].data(), at, nan);
          if (at != 0) set_element(type, data[rank].data(), at - 1, 0);
          check(type, static_cast<RedOp>(o), data, kCount);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// The rules of docs/numerics.md spelled out, so that the reference is not the only witness.
TEST_F(ReduceSpecialTest, spelled_out) {
  using T = DataType;
  // Signed zeros.
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kSum, {0x80000000, 0x80000000}), 0x80000000U);
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kSum, {0x80000000, 0}), 0U);
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kMin, {0, 0x80000000}), 0x80000000U);
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kMin, {0x80000000, 0}), 0x80000000U);
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kMax, {0, 0x80000000}), 0U);
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kMax, {0x80000000, 0}), 0U);
  EXPECT_EQ(reduce_one(T::kBf16, RedOp::kMin, {0, 0x8000}), 0x8000U);
  // One canonical NaN, whatever came in.
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kSum, {0xFFFFFFFF, 0x3F800000}), 0x7FC00000U);
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kSum, {0x7F800000, 0xFF800000}), 0x7FC00000U);
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kProd, {0x7F800000, 0}), 0x7FC00000U);
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kMax, {0x3F800000, 0xFF800001}), 0x7FC00000U);
  EXPECT_EQ(reduce_one(T::kF64, RedOp::kMin, {0x7FF0000000000001, 0}), 0x7FF8000000000000U);
  EXPECT_EQ(reduce_one(T::kF16, RedOp::kSum, {0xFC01, 0}), 0x7E00U);
  EXPECT_EQ(reduce_one(T::kBf16, RedOp::kSum, {0xFFFF, 0}), 0x7FC0U);
  EXPECT_EQ(reduce_one(T::kE4m3, RedOp::kMin, {0xFF, 0}), 0x7FU);
  EXPECT_EQ(reduce_one(T::kE5m2, RedOp::kMax, {0, 0xFD}), 0x7FU);
  // A copy of one rank keeps a payload.
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kSum, {0xFF800001}), 0xFF800001U);
  EXPECT_EQ(reduce_one(T::kBf16, RedOp::kAvg, {0xFF81}), 0xFF81U);
  // Overflow at the conversion.
  EXPECT_EQ(reduce_one(T::kF16, RedOp::kSum, {0x7BFF, 0x7BFF}), 0x7C00U);
  EXPECT_EQ(reduce_one(T::kBf16, RedOp::kSum, {0x7F7F, 0x7F7F}), 0x7F80U);
  EXPECT_EQ(reduce_one(T::kE5m2, RedOp::kSum, {0x7B, 0x7B}), 0x7CU);
  EXPECT_EQ(reduce_one(T::kE5m2, RedOp::kSum, {0xFC, 0x00}), 0xFCU);
  EXPECT_EQ(reduce_one(T::kE4m3, RedOp::kSum, {0x7E, 0x7E}), 0x7EU);
  EXPECT_EQ(reduce_one(T::kE4m3, RedOp::kProd, {0xFE, 0x7E}), 0xFEU);
  EXPECT_EQ(reduce_one(T::kE4m3, RedOp::kProd, std::vector<uint64_t>(20, 0x7E)), 0x7EU);
  // The accumulator is wide: 65504 + 65504 - 65504 does not overflow on the way.
  EXPECT_EQ(reduce_one(T::kF16, RedOp::kSum, {0x7BFF, 0x7BFF, 0xFBFF}), 0x7BFFU);
  // Rounded once: 1 + 2^-9 + 2^-9 in bf16 (steps of 2^-7) stays 1 in steps and overall,
  // 1 + 2^-8 + 2^-9 rounds up only if the first sum was not rounded.
  EXPECT_EQ(reduce_one(T::kBf16, RedOp::kSum, {0x3F80, 0x3B80, 0x3B00}), 0x3F81U);
  // Ties to even.
  EXPECT_EQ(reduce_one(T::kBf16, RedOp::kSum, {0x3F80, 0x3B80}), 0x3F80U);
  EXPECT_EQ(reduce_one(T::kBf16, RedOp::kSum, {0x3F81, 0x3B80}), 0x3F82U);
  // Denormals.
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kSum, {1, 1}), 2U);
  EXPECT_EQ(reduce_one(T::kBf16, RedOp::kSum, {1, 2}), 3U);
  EXPECT_EQ(reduce_one(T::kF16, RedOp::kSum, {0x8001, 0x8001}), 0x8002U);
  EXPECT_EQ(reduce_one(T::kF16, RedOp::kProd, {0x0002, 0x3800}), 0x0001U);
  EXPECT_EQ(reduce_one(T::kE4m3, RedOp::kSum, {0x07, 0x01}), 0x08U);
  EXPECT_EQ(reduce_one(T::kE5m2, RedOp::kSum, {0x83, 0x81}), 0x84U);
  // Order: (1e20 + -1e20) + 1 = 1, but 1e20 + (-1e20 + 1) = 0.
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kSum, {0x60AD78EC, 0xE0AD78EC, 0x3F800000}), 0x3F800000U);
  EXPECT_EQ(reduce_one(T::kF32, RedOp::kSum, {0x3F800000, 0x60AD78EC, 0xE0AD78EC}), 0U);
  // Integers.
  EXPECT_EQ(reduce_one(T::kU8, RedOp::kSum, {200, 100}), 44U);
  EXPECT_EQ(reduce_one(T::kU8, RedOp::kAvg, {200, 200}), 72U);
  EXPECT_EQ(reduce_one(T::kI8, RedOp::kAvg, {0xFD, 0xFC}), 0xFDU);
  EXPECT_EQ(reduce_one(T::kI32, RedOp::kMin, {0x80000000, 0x7FFFFFFF}), 0x80000000U);
  EXPECT_EQ(reduce_one(T::kU32, RedOp::kMin, {0x80000000, 0x7FFFFFFF}), 0x7FFFFFFFU);
  EXPECT_EQ(reduce_one(T::kI64, RedOp::kProd, {0xFFFFFFFFFFFFFFFF, 5}), 0xFFFFFFFFFFFFFFFBU);
  EXPECT_EQ(reduce_one(T::kU16, RedOp::kProd, {0xFFFF, 0xFFFF}), 1U);
}

#if defined(__x86_64__)
TEST_F(ReduceSpecialTest, the_callers_settings_do_not_matter_and_stay) {
  constexpr unsigned kFlagBits = 0x3F;
  constexpr size_t kCount = 100;
  for (const DataType type :
       {DataType::kF32, DataType::kF64, DataType::kF16, DataType::kBf16, DataType::kE4m3}) {
    const std::vector<Bytes> data = {random_elements(type, kCount, 5),
                                     random_elements(type, kCount, 6),
                                     random_elements(type, kCount, 7)};
    const std::vector<const void*> src = {data[0].data(), data[1].data(), data[2].data()};
    for (const RedOp op : {RedOp::kSum, RedOp::kProd, RedOp::kMin, RedOp::kAvg}) {
      const Bytes expected = reference(type, op, data, kCount, 3);
      const unsigned before = _mm_getcsr();
      // Flush-to-zero and denormals-are-zero; round up; every exception traps.
      for (const unsigned setting : {0x1F80U | 0x8040U, 0x1F80U | 0x4000U, 0x0000U}) {
        for_each_target([&] {
          Bytes out(expected.size());
          void* const dst = out.data();
          _mm_setcsr(setting);
          reduce({src.data(), 3, &dst, 1, kCount, type, op, 3, false});
          const unsigned after = _mm_getcsr();
          _mm_setcsr(before);
          ASSERT_EQ(after & ~kFlagBits, setting);
          ASSERT_EQ(out, expected)
              << describe_difference(type, op, data, out.data(), expected.data(), kCount);
        });
      }
    }
  }
}
#endif

}  // namespace
}  // namespace zbccl::kernels::test
