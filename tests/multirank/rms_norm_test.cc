// zbcclAllReduceRmsNorm: every element of every output against plain scalar code, over ranks, kinds
// of memory, algorithms, forms of codes, strides and aliases; and what it refuses.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "multirank/case_loop.h"
#include "support/connect.h"
#include "support/data.h"
#include "support/expect_error.h"
#include "support/fused_reference.h"
#include "support/reference.h"

namespace zbccl::test {
namespace {

constexpr size_t kGroup = 128;

struct Shape {
  zbcclDataType_t type = zbcclBfloat16;
  zbcclNormCodes_t form = zbcclNormNoCodes;
  size_t tokens = 0;
  size_t hidden = 0;
  bool one_plus_weight = false;
  bool has_residual = true;
  bool wants_residual_out = true;
  bool wants_out = true;
  bool by_columns = false;
  size_t gap = 0;  // between the runs of the scales
  Fill fill = Fill::kRandom;
  enum Alias { kNone, kResidualInPlace, kOutIsX, kResidualOutIsX } alias = kNone;

  bool groups() const { return form == zbcclNormGroupScales || form == zbcclNormGroupPowersOfTwo; }
  size_t num_groups() const { return groups() ? hidden / kGroup : 0; }
  size_t count() const { return tokens * hidden; }
  size_t row_stride() const { return by_columns ? 1 : num_groups() + gap; }
  size_t group_stride() const { return by_columns ? tokens + gap : 1; }
  size_t scales() const { return num_groups() * tokens + gap * (num_groups() + tokens); }
};

Shape random_shape(std::mt19937& random) {
  constexpr size_t kTokens[] = {0, 1, 2, 3, 7, 16, 33};
  constexpr size_t kHidden[] = {128, 256, 640, 1152, 2048};
  constexpr size_t kOdd[] = {8, 72, 264, 1000};
  Shape shape;
  shape.type = random() % 2 == 0 ? zbcclBfloat16 : zbcclFloat16;
  shape.form = static_cast<zbcclNormCodes_t>(random() % zbcclNumNormCodes);
  shape.tokens = kTokens[random() % std::size(kTokens)];
  shape.hidden = kHidden[random() % std::size(kHidden)];
  if (!shape.groups() && random() % 3 == 0) shape.hidden = kOdd[random() % std::size(kOdd)];
  shape.one_plus_weight = random() % 2 == 0;
  shape.has_residual = random() % 4 != 0;
  shape.wants_out = shape.form == zbcclNormNoCodes || random() % 2 == 0;
  shape.wants_residual_out = random() % 4 != 0;
  shape.by_columns = random() % 2 == 0;
  shape.gap = random() % 2 * 3;
  shape.fill = random() % 4 == 0 ? Fill::kSpecial : Fill::kRandom;
  shape.alias = static_cast<Shape::Alias>(random() % 4);
  if (shape.alias == Shape::kResidualInPlace &&
      (!shape.has_residual || !shape.wants_residual_out)) {
    shape.alias = Shape::kNone;
  }
  if (shape.alias == Shape::kOutIsX && !shape.wants_out) shape.alias = Shape::kNone;
  if (shape.alias == Shape::kResidualOutIsX && !shape.wants_residual_out) {
    shape.alias = Shape::kNone;
  }
  return shape;
}

// This rank's buffers of a call.
class Buffers {
 public:
  Buffers(const Shape& shape, bool in_pool, size_t offset, uint64_t seed, int rank)
      : shape_(shape),
        x(make(in_pool, shape.count() * 2, offset)),
        residual(make(in_pool, shape.count() * 2, offset)),
        weight(make(in_pool, shape.hidden * 2, offset)),
        residual_out(make(in_pool, shape.count() * 2, offset)),
        out(make(in_pool, shape.count() * 2, offset)),
        codes(make(in_pool, shape.count(), offset)),
        scales(make(in_pool, shape.scales() * sizeof(float), 0)),
        exponents(make(in_pool, shape.scales(), offset)) {
    fill_input(x.data(), seed, rank);
    fill(residual.data(), shape.count(), shape.type, shape.fill, seed_of(seed, 1000));
    fill(weight.data(), shape.hidden, shape.type, Fill::kRandom, seed_of(seed, 1001));
  }

  void fill_input(void* to, uint64_t seed, int rank) const {
    fill(to, shape_.count(), shape_.type, shape_.fill, seed_of(seed, static_cast<uint64_t>(rank)));
  }

  zbcclRmsNorm_t args() const {
    zbcclRmsNorm_t args = ZBCCL_RMS_NORM_INITIALIZER;
    args.x = x.data();
    if (shape_.has_residual) args.residual = residual.data();
    args.weight = weight.data();
    if (shape_.wants_residual_out) args.residual_out = residual_out.data();
    if (shape_.alias == Shape::kResidualInPlace) args.residual_out = residual.data();
    if (shape_.alias == Shape::kResidualOutIsX) args.residual_out = x.data();
    if (shape_.wants_out) args.out = out.data();
    if (shape_.alias == Shape::kOutIsX) args.out = x.data();
    args.tokens = shape_.tokens;
    args.hidden = shape_.hidden;
    args.type = shape_.type;
    args.code_form = shape_.form;
    args.epsilon = 1e-5F;
    args.one_plus_weight = shape_.one_plus_weight ? 1 : 0;
    if (shape_.form != zbcclNormNoCodes) args.codes = codes.data();
    if (shape_.form == zbcclNormTensorScale) args.scale = 0.0371F;
    if (!shape_.groups()) return args;
    args.scales = reinterpret_cast<float*>(scales.data());
    args.scale_row_stride = shape_.row_stride();
    args.scale_group_stride = shape_.group_stride();
    if (!shape_.by_columns && shape_.gap == 0) {
      args.scale_row_stride = args.scale_group_stride = 0;  // the default
    }
    if (shape_.form == zbcclNormGroupPowersOfTwo) {
      args.scales_ue8m0 = reinterpret_cast<uint8_t*>(exponents.data());
    }
    return args;
  }

  void expect(uint64_t seed, int nranks) const;
  void expect_untouched() const {
    for (const Guarded* g : {&residual_out, &out, &codes, &scales, &exponents}) {
      EXPECT_TRUE(g->poisoned());
    }
  }

 private:
  static Guarded make(bool in_pool, size_t bytes, size_t offset) {
    return in_pool ? registered(bytes, offset) : Guarded::plain(bytes, offset);
  }
  std::vector<NormResult> reference(uint64_t seed, int nranks) const;
  void expect_scales(const std::vector<NormResult>& rows) const;

  Shape shape_;

 public:
  Guarded x, residual, weight, residual_out, out, codes, scales, exponents;
};

std::vector<NormResult> Buffers::reference(uint64_t seed, int nranks) const {
  std::vector<Bytes> inputs;
  std::vector<const void*> src;
  for (int r = 0; r < nranks; ++r) {
    inputs.emplace_back(shape_.count() * 2);
    fill_input(inputs.back().data(), seed, r);
  }
  for (const Bytes& input : inputs) src.push_back(input.data());
  Bytes sum(shape_.count() * 2);
  reference_reduce(src, sum.data(), shape_.count(), shape_.type, zbcclSum);
  if (nranks == 1) sum = inputs[0];
  Bytes given(shape_.count() * 2);
  fill(given.data(), shape_.count(), shape_.type, shape_.fill, seed_of(seed, 1000));
  const NormCase norm = {shape_.type,
                         static_cast<int>(shape_.hidden),
                         1e-5F,
                         shape_.one_plus_weight,
                         static_cast<Scales>(shape_.form),
                         0.0371F};
  std::vector<NormResult> rows;
  for (size_t t = 0; t < shape_.tokens; ++t) {
    const size_t at = t * shape_.hidden * 2;
    rows.push_back(norm_reference(norm, sum.data() + at,
                                  shape_.has_residual ? given.data() + at : nullptr,
                                  reinterpret_cast<const uint8_t*>(weight.data())));
  }
  return rows;
}

void Buffers::expect(uint64_t seed, int nranks) const {
  const std::vector<NormResult> rows = reference(seed, nranks);
  const zbcclRmsNorm_t given = args();
  const auto same = [](const void* got, size_t at, const Bytes& expected) {
    return std::memcmp(static_cast<const uint8_t*>(got) + at, expected.data(), expected.size()) ==
           0;
  };
  for (size_t t = 0; t < rows.size(); ++t) {
    const size_t at = t * shape_.hidden;
    if (given.residual_out != nullptr) {
      ASSERT_TRUE(same(given.residual_out, 2 * at, rows[t].residual_out))
          << "residual_out, row " << t;
    }
    if (given.out != nullptr) {
      ASSERT_TRUE(same(given.out, 2 * at, rows[t].out)) << "out, row " << t;
    }
    if (given.codes != nullptr) {
      ASSERT_TRUE(same(given.codes, at, rows[t].codes)) << "codes, row " << t;
    }
  }
  if (shape_.groups()) expect_scales(rows);
  for (const Guarded* g :
       {&x, &residual, &weight, &residual_out, &out, &codes, &scales, &exponents}) {
    ASSERT_EQ("", g->damage());
  }
}

// And nothing between the runs.
void Buffers::expect_scales(const std::vector<NormResult>& rows) const {
  if (shape_.scales() == 0) return;
  Bytes expected(scales.size(), 0xA5);
  Bytes expected_exponents(exponents.size(), 0xA5);
  for (size_t t = 0; t < rows.size(); ++t) {
    for (size_t g = 0; g < shape_.num_groups(); ++g) {
      const size_t at = t * shape_.row_stride() + g * shape_.group_stride();
      std::memcpy(&expected[at * sizeof(float)], &rows[t].scales[g], sizeof(float));
      if (shape_.form == zbcclNormGroupPowersOfTwo) expected_exponents[at] = rows[t].exponents[g];
    }
  }
  ASSERT_EQ(0, std::memcmp(expected.data(), scales.data(), scales.size())) << "scales";
  ASSERT_EQ(0, std::memcmp(expected_exponents.data(), exponents.data(), exponents.size()))
      << "exponents";
}

std::string describe(const Shape& s) {
  return std::to_string(s.tokens) + " x " + std::to_string(s.hidden) + ", form " +
         std::to_string(s.form) + ", alias " + std::to_string(s.alias) +
         (s.by_columns ? ", columns" : ", rows") + ", gap " + std::to_string(s.gap) +
         (s.has_residual ? "" : ", no residual");
}

// A shape and where its buffers lie.
struct Case {
  Shape shape;
  bool in_pool = false;
  size_t offset = 0;
};

std::string describe_case(const Case& test) {
  return describe(test.shape) + (test.in_pool ? ", registered" : ", plain");
}

void run_case(Rank& rank, Communicator& comm, const Case& test, uint64_t seed) {
  const Buffers buffers(test.shape, test.in_pool, test.offset, seed, rank.rank());
  const zbcclRmsNorm_t args = buffers.args();
  if (args.out == nullptr && args.residual_out == nullptr && args.codes == nullptr) return;
  ASSERT_EQ(zbcclSuccess, zbcclAllReduceRmsNorm(&args, comm.get(), nullptr)) << zbcclGetLastError();
  buffers.expect(seed, rank.size());
}

class RmsNormTest : public testing::TestWithParam<ByAlgorithm> {};

TEST_P(RmsNormTest, EqualsTheReference) {
  const JobOptions options = job_of(GetParam());
  std::mt19937 random(static_cast<uint32_t>(options.ranks));
  std::vector<Case> cases(48);
  for (Case& one : cases) {
    one.shape = random_shape(random);
    one.in_pool = random() % 2 == 0;
    one.offset = random() % 2 * 2;
  }
  run_cases(options, cases, describe_case, run_case);
}

INSTANTIATE_TEST_SUITE_P(All, RmsNormTest, every_algorithm(), algorithm_name);

// Where nobody can attach to a peer's ordinary memory it is staged, and the result is the same.
TEST(RmsNorm, OfOrdinaryMemoryThatIsStaged) {
  JobOptions options{.ranks = 3};
  options.env = {{"ZBCCL_ONE_SHOT_MAX", "1"}, {"ZBCCL_CMA", "0"}};
  std::mt19937 random(7);
  std::vector<Case> cases(16);
  for (Case& one : cases) {
    one.shape = random_shape(random);
    one.shape.wants_out = true;
  }
  run_cases(options, cases, describe_case,
            [&](Rank& rank, Communicator& comm, const Case& one, uint64_t seed) {
              run_case(rank, comm, one, seed);
              if (seed + 1 == cases.size()) {
                EXPECT_GT(comm.stats().staged_bytes, 0U);
              }
            });
}

TEST(RmsNorm, AsynchronousAndInAGroup) {
  run_job({.ranks = 3}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Shape shape;
    shape.form = zbcclNormGroupPowersOfTwo;
    shape.tokens = 40;
    shape.hidden = 256;
    const Buffers first(shape, true, 0, 1, rank.rank());
    const Buffers second(shape, true, 0, 2, rank.rank());
    const zbcclRmsNorm_t one = first.args();
    zbcclRmsNorm_t two = second.args();
    zbcclWork_t work = nullptr;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.work = &work;
    check(zbcclGroupStart());
    check(zbcclAllReduceRmsNorm(&one, comm.get(), nullptr));
    check(zbcclAllReduceRmsNorm(&two, comm.get(), &call));
    two = zbcclRmsNorm_t{};  // read by now
    check(zbcclGroupEnd());
    check(zbcclWorkWait(work, 0));
    check(zbcclWorkFree(work));
    first.expect(1, rank.size());
    second.expect(2, rank.size());
    comm.destroy();
  });
}

TEST(RmsNorm, AMismatchIsReportedByEveryRankAndHarmless) {
  using Change = void (*)(zbcclRmsNorm_t & args);
  const std::vector<std::tuple<Change, std::vector<std::string>>> changes = {
      {[](auto& a) { --a.tokens; }, {"2048", "1792"}},
      {[](auto& a) {
         a.hidden = 128;
         a.tokens = 16;
         a.scale_group_stride = 1;
         a.scale_row_stride = 2;
       },
       {"rows of 256", "rows of 128"}},
      {[](auto& a) { a.type = zbcclFloat16; }, {"bf16", "f16"}},
      {[](auto& a) { a.epsilon = 0.5F; }, {"epsilon 0.5", "epsilon 1e-05"}},
      {[](auto& a) { a.code_form = zbcclNormGroupScales; }, {"group scales", "powers of two"}},
      {[](auto& a) { a.one_plus_weight = 1; }, {"1 + weight"}},
      {[](auto& a) { a.residual = nullptr; }, {"no residual"}},
      {[](auto& a) { a.out = nullptr; }, {"gives residual_out out", "gives residual_out scales"}},
      {[](auto& a) {
         a.scale_row_stride = 4;
         a.scale_group_stride = 1;
       },
       {"strides 4 and 1"}},
  };
  for (const char* one_shot_max : {"1", "1M"}) {
    JobOptions options{.ranks = 4};
    options.env = {{"ZBCCL_ONE_SHOT_MAX", one_shot_max}};
    run_job(options, [&](Rank& rank) {
      Communicator comm = connect(rank);
      Shape shape;
      shape.form = zbcclNormGroupPowersOfTwo;
      shape.tokens = 8;
      shape.hidden = 256;
      shape.gap = 8;
      const Buffers buffers(shape, true, 0, 3, rank.rank());
      for (const auto& [change, words] : changes) {
        zbcclRmsNorm_t args = buffers.args();
        args.scales_ue8m0 = nullptr;
        if (rank.rank() == 2) change(args);
        expect_error(zbcclInvalidUsage, zbcclAllReduceRmsNorm(&args, comm.get(), nullptr), words);
        buffers.expect_untouched();
      }
      const zbcclRmsNorm_t args = buffers.args();
      check(zbcclAllReduceRmsNorm(&args, comm.get(), nullptr));
      buffers.expect(3, rank.size());
      comm.destroy();
    });
  }
}

TEST(RmsNorm, WhatIsWrongByItself) {
  run_job({.ranks = 1}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Shape shape;
    shape.form = zbcclNormGroupScales;
    shape.tokens = 4;
    shape.hidden = 256;
    const Buffers buffers(shape, false, 0, 3, rank.rank());
    const auto refuses = [&](auto change, const std::vector<std::string>& words) {
      zbcclRmsNorm_t args = buffers.args();
      change(args);
      expect_error(zbcclInvalidArgument, zbcclAllReduceRmsNorm(&args, comm.get(), nullptr), words);
    };
    expect_error(zbcclInvalidArgument, zbcclAllReduceRmsNorm(nullptr, comm.get(), nullptr),
                 {"args"});
    refuses([](auto& a) { a.size = 8; }, {"zbcclRmsNorm_t.size"});
    refuses([](auto& a) { a.type = zbcclFloat32; }, {"f32", "bf16 and f16"});
    refuses([](auto& a) { a.type = static_cast<zbcclDataType_t>(99); }, {"99"});
    refuses([](auto& a) { a.code_form = static_cast<zbcclNormCodes_t>(9); }, {"9", "form"});
    refuses([](auto& a) { a.hidden = 0; }, {"hidden is 0"});
    refuses([](auto& a) { a.hidden = 264; }, {"264", "128"});
    refuses([](auto& a) { a.hidden = 32768; }, {"32768", "16384"});
    refuses([](auto& a) { a.tokens = SIZE_MAX / 8; }, {"more than memory"});
    refuses([](auto& a) { a.epsilon = -1; }, {"epsilon"});
    refuses(
        [](auto& a) {
          a.code_form = zbcclNormTensorScale;
          a.scales = nullptr;
          a.scale = 0;
        },
        {"scale is 0"});
    refuses([](auto& a) { a.x = nullptr; }, {"null pointer"});
    refuses([](auto& a) { a.weight = nullptr; }, {"weight"});
    refuses([](auto& a) { a.codes = nullptr; }, {"codes"});
    refuses([](auto& a) { a.scales = nullptr; }, {"scales"});
    refuses([](auto& a) { a.scales_ue8m0 = static_cast<uint8_t*>(a.codes); }, {"powers of two"});
    refuses([](auto& a) { a.code_form = zbcclNormNoCodes; }, {"codes are given"});
    refuses(
        [](auto& a) {
          a.scale_row_stride = 1;
          a.scale_group_stride = 3;
        },
        {"scale_group_stride 3"});
    refuses([](auto& a) { a.out = static_cast<std::byte*>(a.residual_out) + 2; }, {"overlap"});
    refuses([](auto& a) { a.out = const_cast<void*>(a.residual); }, {"residual", "overlap"});
    refuses([](auto& a) { a.codes = const_cast<void*>(a.weight); }, {"weight", "overlap"});
    refuses(
        [](auto& a) {
          a.code_form = zbcclNormNoCodes;
          a.residual_out = a.out = a.codes = nullptr;
          a.scales = nullptr;
        },
        {"no output"});
    buffers.expect_untouched();
    comm.destroy();
  });
}

// Empty tensors may have no address, and another one on each rank.
TEST(RmsNorm, NoRows) {
  run_job({.ranks = 3}, [](Rank& rank) {
    Communicator comm = connect(rank);
    zbcclRmsNorm_t args = ZBCCL_RMS_NORM_INITIALIZER;
    args.hidden = 256;
    args.type = zbcclBfloat16;
    check(zbcclAllReduceRmsNorm(&args, comm.get(), nullptr));
    args.code_form = zbcclNormGroupScales;
    std::byte here{};
    if (rank.rank() == 1) args.codes = args.out = args.residual_out = &here;
    check(zbcclAllReduceRmsNorm(&args, comm.get(), nullptr));
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
