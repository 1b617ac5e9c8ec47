// Sums of multiplied operands.
#include "operators.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "nccl/ranks.h"
#include "support/floats.h"
#include "support/reference.h"

namespace zbccl::test {
namespace {

class Types : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(All, Types, testing::Range(0, static_cast<int>(ncclNumTypes)),
                         [](const auto& test) {
                           return zbcclTypeName(own_type(static_cast<ncclDataType_t>(test.param)));
                         });

// A product over two "ranks" is one multiplication of the type, rounded once.
std::vector<std::byte> products(const std::vector<std::byte>& in, ncclDataType_t type,
                                const std::byte* factor) {
  const size_t size = element_size(own_type(type));
  std::vector<std::byte> factors;
  for (size_t i = 0; i < in.size(); i += size) factors.insert(factors.end(), factor, factor + size);
  std::vector<std::byte> out(in.size());
  const void* const operands[] = {in.data(), factors.data()};
  reference_reduce(operands, out.data(), in.size() / size, own_type(type), zbcclProd);
  return out;
}

TEST_P(Types, OperandsAreMultipliedFirst) {
  const auto type = static_cast<ncclDataType_t>(GetParam());
  run_job({.ranks = 3}, [&](Rank& rank) {
    constexpr size_t kCount = 500;
    const Comm comm = connect(rank);
    const size_t size = element_size(own_type(type));
    std::vector<std::vector<std::byte>> multiplied;
    std::vector<std::byte> mine(3 * kCount * size);
    std::byte factors[3][8];
    for (int r = 0; r < 3; ++r) {
      std::vector<std::byte> in(3 * kCount * size);
      fill(in.data(), 3 * kCount, own_type(type), Fill::kRandom,
           seed_of(5, static_cast<uint64_t>(r)));
      fill(factors[r], 1, own_type(type), Fill::kRandom, seed_of(6, static_cast<uint64_t>(r)));
      multiplied.push_back(products(in, type, factors[r]));
      if (r == rank.rank()) mine = in;
    }
    std::vector<std::byte> want(mine.size());
    const void* const operands[] = {multiplied[0].data(), multiplied[1].data(),
                                    multiplied[2].data()};
    reference_reduce(operands, want.data(), 3 * kCount, own_type(type), zbcclSum);

    // Given now, or read when the call is made.
    for (const ncclScalarResidence_t residence : {ncclScalarHostImmediate, ncclScalarDevice}) {
      std::byte factor[8];
      std::memcpy(factor, factors[rank.rank()], sizeof factor);
      if (residence == ncclScalarDevice) std::memset(factor, 0, sizeof factor);
      ncclRedOp_t op = ncclSum;
      check(ncclRedOpCreatePreMulSum(&op, factor, type, residence, comm));
      EXPECT_GE(op, ncclNumOps);
      if (residence == ncclScalarHostImmediate) {
        std::memset(factor, 0, sizeof factor);
      } else {
        std::memcpy(factor, factors[rank.rank()], sizeof factor);
      }
      Buffer all(mine.size());
      check(ncclAllReduce(mine.data(), all.data(), 3 * kCount, type, op, comm, nullptr));
      all.expect(want, "all_reduce");
      Buffer part(kCount * size);
      check(ncclReduceScatter(mine.data(), part.data(), kCount, type, op, comm, nullptr));
      const auto at = want.begin() +
                      static_cast<std::ptrdiff_t>(static_cast<size_t>(rank.rank()) * kCount * size);
      part.expect({at, at + static_cast<std::ptrdiff_t>(kCount * size)}, "reduce_scatter");
      Buffer root(rank.rank() == 1 ? mine.size() : 0);
      check(ncclGroupStart());
      check(ncclReduce(mine.data(), rank.rank() == 1 ? root.data() : nullptr, 3 * kCount, type, op,
                       1, comm, nullptr));
      check(ncclGroupEnd());
      root.expect(rank.rank() == 1 ? want : std::vector<std::byte>(), "reduce");
      check(ncclRedOpDestroy(op, comm));
    }
  });
}

// Every number that 8 and 16 bits hold, times one, is itself.
TEST(Multiply, KeepsEveryNumber) {
  const auto all_of = [](auto bits, ncclDataType_t type, unsigned one) {
    using Bits = decltype(bits);
    const unsigned count = 1U << (8 * sizeof(Bits));
    const auto factor = static_cast<Bits>(one);
    std::vector<Bits> in(count);
    for (unsigned i = 0; i < count; ++i) in[i] = static_cast<Bits>(i);
    std::vector<Bits> out(count, 0x5a);
    nccl::multiply(in.data(), out.data(), count, type, &factor);
    unsigned others = 0;
    for (unsigned i = 0; i < count; ++i) others += in[i] != out[i] ? 1 : 0;
    return others;
  };
  // NaNs become the one that docs/numerics.md names.
  EXPECT_EQ(2 * 1023 - 1, all_of(uint16_t{}, ncclFloat16, 0x3c00));
  EXPECT_EQ(2 * 127 - 1, all_of(uint16_t{}, ncclBfloat16, 0x3f80));
  EXPECT_EQ(1, all_of(uint8_t{}, ncclFloat8e4m3, 0x38));
  EXPECT_EQ(2 * 3 - 1, all_of(uint8_t{}, ncclFloat8e5m2, 0x3c));
}

TEST(Operators, AreChecked) {
  run_job({.ranks = 1}, [](Rank& rank) {
    const Comm comm = connect(rank);
    float factor = 2;
    ncclRedOp_t op = ncclSum;
    expect_refused(ncclInvalidArgument,
                   ncclRedOpCreatePreMulSum(nullptr, &factor, ncclFloat32, ncclScalarDevice, comm),
                   {"op"});
    expect_refused(ncclInvalidArgument,
                   ncclRedOpCreatePreMulSum(&op, nullptr, ncclFloat32, ncclScalarDevice, comm),
                   {"scalar"});
    expect_refused(ncclInvalidArgument,
                   ncclRedOpCreatePreMulSum(&op, &factor, ncclNumTypes, ncclScalarDevice, comm),
                   {"element type"});
    expect_refused(ncclInvalidArgument,
                   ncclRedOpCreatePreMulSum(&op, &factor, ncclFloat32,
                                            static_cast<ncclScalarResidence_t>(2), comm),
                   {"residence"});
    check(ncclRedOpCreatePreMulSum(&op, &factor, ncclFloat32, ncclScalarHostImmediate, comm));
    float value = 3;
    expect_refused(ncclInvalidArgument,
                   ncclAllReduce(&value, &value, 1, ncclInt32, op, comm, nullptr),
                   {"another element type"});
    check(ncclAllReduce(&value, &value, 1, ncclFloat32, op, comm, nullptr));
    EXPECT_EQ(6.0F, value);
    expect_refused(ncclInvalidArgument, ncclRedOpDestroy(ncclSum, comm), {"no operator"});
    check(ncclRedOpDestroy(op, comm));
    expect_refused(ncclInvalidArgument, ncclRedOpDestroy(op, comm), {"no operator"});
    expect_refused(ncclInvalidArgument,
                   ncclAllReduce(&value, &value, 1, ncclFloat32, op, comm, nullptr), {"operator"});
    // Numbers are used again.
    ncclRedOp_t next = ncclSum;
    check(ncclRedOpCreatePreMulSum(&next, &factor, ncclFloat32, ncclScalarHostImmediate, comm));
    EXPECT_EQ(op, next);
  });
}

}  // namespace
}  // namespace zbccl::test
