// The conversions of the small floats, from every bit pattern, seen through reductions.
#include "kernels/reduce.h"
#include "reduce_reference.h"

namespace zbccl::kernels::test {
namespace {

class ReduceConversionTest : public EveryTarget {
 protected:
  void check(DataType type, RedOp op, const Bytes& a, const Bytes& b, size_t divisor) {
    const std::vector<Bytes> data = {a, b};
    const size_t count = a.size() / type_size(type);
    const Bytes expected = reference(type, op, data, count, divisor);
    const void* const src[] = {a.data(), b.data()};
    for_each_target([&] {
      Bytes out(expected.size());
      void* const dst = out.data();
      reduce({src, 2, &dst, 1, count, type, op, divisor, false});
      ASSERT_EQ(out, expected) << describe_difference(type, op, data, out.data(), expected.data(),
                                                      count);
    });
  }
};

Bytes every_pattern(DataType type) {
  const size_t count = size_t{1} << (8 * type_size(type));
  Bytes data(count * type_size(type));
  for (size_t i = 0; i < count; ++i) set_element(type, data.data(), i, i);
  return data;
}

Bytes constant(DataType type, size_t count, uint64_t bits) {
  Bytes data(count * type_size(type));
  for (size_t i = 0; i < count; ++i) set_element(type, data.data(), i, bits);
  return data;
}

constexpr DataType kSmall[] = {DataType::kF16, DataType::kBf16, DataType::kE4m3, DataType::kE5m2};

// x + (-0) is x: widening and narrowing lose nothing, and only NaN changes its bits.
TEST_F(ReduceConversionTest, every_pattern_survives) {
  for (const DataType type : kSmall) {
    const Bytes all = every_pattern(type);
    const size_t count = all.size() / type_size(type);
    const Bytes zero = constant(type, count, uint64_t{1} << (8 * type_size(type) - 1));
    const void* const src[] = {all.data(), zero.data()};
    const uint64_t infinity = type == DataType::kF16    ? 0x7C00
                              : type == DataType::kBf16 ? 0x7F80
                              : type == DataType::kE4m3 ? 0x7E
                                                        : 0x7C;
    const uint64_t nan = type == DataType::kF16 ? 0x7E00 : type == DataType::kBf16 ? 0x7FC0 : 0x7F;
    const uint64_t sign = uint64_t{1} << (8 * type_size(type) - 1);
    for_each_target([&] {
      Bytes out(all.size());
      void* const dst = out.data();
      reduce({src, 2, &dst, 1, count, type, RedOp::kSum, 2, false});
      for (size_t i = 0; i < count; ++i) {
        const uint64_t want = (i & ~sign) > infinity ? nan : i;
        ASSERT_EQ(get_element(type, out.data(), i), want) << type_name(type) << " " << i;
      }
    });
  }
}

// Sums, products and quotients of every pair of FP8 values: every way that a result rounds.
TEST_F(ReduceConversionTest, every_pair_of_fp8) {
  for (const DataType type : {DataType::kE4m3, DataType::kE5m2}) {
    Bytes a(65536);
    Bytes b(65536);
    for (size_t i = 0; i < a.size(); ++i) {
      a[i] = static_cast<uint8_t>(i);
      b[i] = static_cast<uint8_t>(i >> 8);
    }
    for (const RedOp op : {RedOp::kSum, RedOp::kProd, RedOp::kMin, RedOp::kMax}) {
      check(type, op, a, b, 2);
    }
    for (const size_t divisor : {2, 3, 5, 1024, 3000}) check(type, RedOp::kAvg, a, b, divisor);
  }
}

// Every 16-bit value with partners that put the result between two values, exactly half way, into
// the denormals, and beyond the largest.
TEST_F(ReduceConversionTest, every_16_bit_value_rounds) {
  for (const DataType type : {DataType::kF16, DataType::kBf16}) {
    const Bytes all = every_pattern(type);
    std::vector<uint64_t> partners = special_values(type);
    for (uint64_t bits = 0x0123; bits < 0x8000; bits += 0x0733) partners.push_back(bits);
    for (const uint64_t partner : partners) {
      const Bytes other = constant(type, 65536, partner);
      check(type, RedOp::kSum, all, other, 2);
      check(type, RedOp::kProd, all, other, 2);
      if (HasFatalFailure()) return;
    }
    const Bytes zero = constant(type, 65536, 0);
    for (const size_t divisor : {2, 3, 7, 1024, 3000, 65536}) {
      check(type, RedOp::kAvg, all, zero, divisor);
    }
  }
}

}  // namespace
}  // namespace zbccl::kernels::test
