// zbcclAllReduceQuantized: every element against plain scalar code, its error on random normals,
// and what it refuses.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "multirank/case_loop.h"
#include "support/connect.h"
#include "support/data.h"
#include "support/expect_error.h"
#include "support/fused_reference.h"

namespace zbccl::test {
namespace {

class QuantizedTest : public testing::TestWithParam<ByAlgorithm> {};

struct Case {
  zbcclDataType_t type;
  zbcclDataType_t code;
  size_t count;
  Fill fill;
  bool in_pool;
  bool in_place;
};

Case random_case(std::mt19937& random) {
  constexpr zbcclDataType_t kTypes[] = {zbcclFloat32, zbcclFloat16, zbcclBfloat16};
  constexpr size_t kCounts[] = {0, 1, 127, 128, 129, 640, 1000, 5003, 20001};
  return {kTypes[random() % 3],
          random() % 2 == 0 ? zbcclFloat8e4m3 : zbcclInt8,
          kCounts[random() % std::size(kCounts)],
          random() % 4 == 0 ? Fill::kSpecial : Fill::kRandom,
          random() % 2 == 0,
          random() % 2 == 0};
}

void run_case(Rank& rank, Communicator& comm, const Case& test, uint64_t seed) {
  const size_t bytes = test.count * element_size(test.type);
  Guarded in = test.in_pool ? registered(bytes, 4) : Guarded::plain(bytes, 4);
  Guarded out = test.in_pool ? registered(bytes, 4) : Guarded::plain(bytes, 4);
  std::vector<Bytes> inputs;
  std::vector<const void*> src;
  for (int r = 0; r < rank.size(); ++r) {
    inputs.emplace_back(bytes);
    fill(inputs.back().data(), test.count, test.type, test.fill,
         seed_of(seed, static_cast<uint64_t>(r)));
  }
  for (const Bytes& input : inputs) src.push_back(input.data());
  if (bytes > 0) std::memcpy(in.data(), src[static_cast<size_t>(rank.rank())], bytes);
  void* const to = test.in_place ? in.data() : out.data();
  ASSERT_EQ(zbcclSuccess, zbcclAllReduceQuantized(in.data(), to, test.count, test.type, test.code,
                                                  comm.get(), nullptr))
      << zbcclGetLastError();
  const Bytes expected =
      quantized_sum_reference(src, test.count, test.type, test.code == zbcclInt8);
  const Difference difference = compare(to, expected.data(), test.count, test.type);
  ASSERT_EQ(0U, difference.count) << "first in element " << difference.first;
  ASSERT_EQ("", in.damage());
  ASSERT_EQ("", out.damage());
}

std::string describe(const Case& test) {
  return std::string(zbcclTypeName(test.type)) + " as " + zbcclTypeName(test.code) + " x " +
         std::to_string(test.count) + (test.in_pool ? ", registered" : ", plain") +
         (test.in_place ? ", in place" : "");
}

TEST_P(QuantizedTest, EqualsTheReference) {
  const JobOptions options = job_of(GetParam());
  std::mt19937 random(static_cast<uint32_t>(options.ranks));
  std::vector<Case> cases(32);
  for (Case& one : cases) one = random_case(random);
  run_cases(options, cases, describe, run_case);
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedTest, every_algorithm(), algorithm_name);

// The table in docs/numerics.md: standard normals in f32, against the sum in f64. Error relative to
// the root mean square of the sums.
struct Error {
  double largest = 0;
  double rms = 0;
};

Error error_of(Rank& rank, Communicator& comm, zbcclDataType_t code) {
  constexpr size_t kCount = 1 << 16;
  std::vector<double> exact(kCount);
  std::vector<float> mine;
  for (int r = 0; r < rank.size(); ++r) {
    std::mt19937 random(static_cast<uint32_t>(r + 1));
    std::normal_distribution<float> normal;
    std::vector<float> values(kCount);
    for (size_t i = 0; i < kCount; ++i) exact[i] += values[i] = normal(random);
    if (r == rank.rank()) mine = values;
  }
  check(zbcclAllReduceQuantized(mine.data(), mine.data(), kCount, zbcclFloat32, code, comm.get(),
                                nullptr));
  Error error;
  double size = 0;
  for (size_t i = 0; i < kCount; ++i) {
    const double difference = std::fabs(mine[i] - exact[i]);
    error.largest = std::max(error.largest, difference);
    error.rms += difference * difference;
    size += exact[i] * exact[i];
  }
  error.largest /= std::sqrt(size / kCount);
  error.rms = std::sqrt(error.rms / size);
  return error;
}

TEST(Quantized, ErrorOnRandomNormals) {
  for (const int ranks : {2, 4, 8}) {
    run_job({.ranks = ranks, .mode = Mode::kThreads}, [](Rank& rank) {
      Communicator comm = connect(rank);
      const Error e4m3 = error_of(rank, comm, zbcclFloat8e4m3);
      const Error int8 = error_of(rank, comm, zbcclInt8);
      EXPECT_LT(e4m3.rms, 0.045);
      EXPECT_LT(e4m3.largest, 0.25);
      EXPECT_LT(int8.rms, 0.012);
      EXPECT_LT(int8.largest, 0.04);
      comm.destroy();
    });
  }
}

TEST(Quantized, AMismatchIsReportedByEveryRankAndHarmless) {
  run_job({.ranks = 3}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Guarded in = registered(4000);
    Guarded out = registered(4000);
    const bool odd = rank.rank() == 1;
    expect_error(zbcclInvalidUsage,
                 zbcclAllReduceQuantized(in.data(), out.data(), 1000, zbcclFloat32,
                                         odd ? zbcclInt8 : zbcclFloat8e4m3, comm.get(), nullptr),
                 {"as i8", "as e4m3", "rank 1"});
    expect_error(zbcclInvalidUsage,
                 odd ? zbcclAllReduce(in.data(), out.data(), 1000, zbcclFloat32, zbcclSum,
                                      comm.get(), nullptr)
                     : zbcclAllReduceQuantized(in.data(), out.data(), 1000, zbcclFloat32, zbcclInt8,
                                               comm.get(), nullptr),
                 {"all_reduce_quantized", "rank 1"});
    EXPECT_TRUE(out.poisoned());
    run_case(rank, comm, {zbcclBfloat16, zbcclInt8, 1000, Fill::kRandom, true, false}, 1);
    comm.destroy();
  });
}

TEST(Quantized, WhatIsWrongByItself) {
  run_job({.ranks = 1}, [](Rank& rank) {
    Communicator comm = connect(rank);
    float x[8] = {};
    const auto call = [&](zbcclDataType_t type, zbcclDataType_t code) {
      return zbcclAllReduceQuantized(x, x, 1, type, code, comm.get(), nullptr);
    };
    expect_error(zbcclInvalidArgument, call(zbcclFloat64, zbcclInt8), {"f64", "f32, f16 and bf16"});
    expect_error(zbcclInvalidArgument, call(zbcclInt8, zbcclInt8), {"i8"});
    expect_error(zbcclInvalidArgument, call(zbcclFloat32, zbcclFloat8e5m2), {"e5m2", "e4m3 or i8"});
    expect_error(zbcclInvalidArgument, call(zbcclFloat32, static_cast<zbcclDataType_t>(77)),
                 {"77"});
    expect_error(zbcclInvalidArgument,
                 zbcclAllReduceQuantized(x, x + 1, 4, zbcclFloat32, zbcclInt8, comm.get(), nullptr),
                 {"overlap"});
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
