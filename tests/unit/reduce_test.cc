// Every type, operator, number of operands, count, alignment, alias and number of destinations,
// on every instruction set of this machine, against the scalar reference.
#include "kernels/reduce.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "reduce_reference.h"

namespace zbccl::kernels::test {
namespace {

constexpr std::array<size_t, 10> kNumSources = {1, 2, 3, 4, 5, 7, 8, 9, 16, 27};
constexpr std::array<size_t, 23> kCounts = {0,  1,  2,  3,  5,   7,   8,   15,  16,   17,   31,  32,
                                            33, 63, 64, 65, 127, 129, 255, 257, 1000, 1023, 4097};
constexpr size_t kMaxCount = 4097;

struct Case {
  DataType type;
  RedOp op;
};

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::string(type_name(info.param.type)) + "_" + op_name(info.param.op);
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (int t = 0; t < kNumDataTypes; ++t) {
    for (int o = 0; o < kNumRedOps; ++o) {
      cases.push_back({static_cast<DataType>(t), static_cast<RedOp>(o)});
    }
  }
  return cases;
}

class ReduceTest : public EveryTarget, public ::testing::WithParamInterface<Case> {};

constexpr size_t kNumBuffers = 27 + 3;

// Where operands lie in their guarded pages.
enum class Place { kFlushEnd, kStart, kStartPlusOdd };

class Operands {
 public:
  Operands() {
    for (auto& buffer : buffers_) buffer = std::make_unique<Guarded>(kMaxCount * 8 + 64);
  }
  uint8_t* at(size_t index, Place place, size_t bytes) {
    Guarded& buffer = *buffers_[index];
    if (place == Place::kFlushEnd) return buffer.end() - bytes;
    return buffer.begin() + (place == Place::kStart ? 0 : 2 * index + 1);
  }

 private:
  std::array<std::unique_ptr<Guarded>, kNumBuffers> buffers_;
};

struct Shape {
  size_t num_src;
  size_t num_dst;
  size_t aliased;  // this source is the first destination; num_src: none
  Place place;
  bool stream;
};

void check(const Case& c, const Shape& shape, const std::vector<Bytes>& data, const Bytes& expected,
           size_t count, Operands& operands) {
  const size_t bytes = count * type_size(c.type);
  std::vector<const void*> src;
  std::vector<void*> dst;
  for (size_t k = 0; k < shape.num_src; ++k) {
    uint8_t* const p = operands.at(k, shape.place, bytes);
    std::memcpy(p, data[k].data(), bytes);
    src.push_back(p);
    if (k == shape.aliased) dst.push_back(p);
  }
  while (dst.size() < shape.num_dst) {
    uint8_t* const p = operands.at(shape.num_src + dst.size(), shape.place, bytes);
    std::memset(p, 0xA5, bytes);
    dst.push_back(p);
  }
  // What lies around a destination at the start of its pages.
  const bool room = shape.place == Place::kStartPlusOdd;
  std::vector<std::array<uint8_t, 2>> around;
  for (void* d : dst) {
    auto* const p = static_cast<uint8_t*>(d);
    if (room) around.push_back({p[-1], p[bytes]});
  }
  reduce({src.data(), src.size(), dst.data(), dst.size(), count, c.type, c.op, shape.num_src,
          shape.stream});
  for (size_t d = 0; d < dst.size(); ++d) {
    const auto* const p = static_cast<const uint8_t*>(dst[d]);
    if (bytes != 0) {
      ASSERT_EQ(std::memcmp(p, expected.data(), bytes), 0)
          << describe_difference(c.type, c.op, data, p, expected.data(), count) << "; destination "
          << d << ", source " << shape.aliased << " aliased, place "
          << static_cast<int>(shape.place);
    }
    if (room) {
      ASSERT_EQ(p[-1], around[d][0]);
      ASSERT_EQ(p[bytes], around[d][1]);
    }
  }
  for (size_t k = 0; k < shape.num_src; ++k) {
    if (k == shape.aliased || bytes == 0) continue;
    ASSERT_EQ(std::memcmp(src[k], data[k].data(), bytes), 0) << "source " << k << " was changed";
  }
}

TEST_P(ReduceTest, equals_the_reference) {
  Operands operands;
  for (const size_t num_src : kNumSources) {
    std::vector<Bytes> data;
    for (size_t k = 0; k < num_src; ++k) {
      data.push_back(random_elements(GetParam().type, kMaxCount, 1000 * num_src + k));
    }
    const Bytes expected = reference(GetParam().type, GetParam().op, data, kMaxCount, num_src);
    for_each_target([&] {
      for (const size_t count : kCounts) {
        for (const Place place : {Place::kFlushEnd, Place::kStart, Place::kStartPlusOdd}) {
          const Shape shapes[] = {{num_src, 1, num_src, place, false},
                                  {num_src, 1, 0, place, false},
                                  {num_src, 1, num_src - 1, place, false},
                                  {num_src, 3, num_src, place, false},
                                  {num_src, 3, num_src / 2, place, true}};
          for (const Shape& shape : shapes) {
            check(GetParam(), shape, data, expected, count, operands);
            if (HasFatalFailure()) return;
          }
        }
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(All, ReduceTest, ::testing::ValuesIn(all_cases()), case_name);

class ReduceMoreTest : public EveryTarget {};

// Blocks of the streaming form begin at any offset from a cache line.
TEST_F(ReduceMoreTest, streams_of_any_alignment) {
  constexpr size_t kCount = 3 * 4096 + 77;
  for (const DataType type :
       {DataType::kF32, DataType::kBf16, DataType::kE4m3, DataType::kI16, DataType::kI64}) {
    for (const RedOp op : {RedOp::kSum, RedOp::kAvg}) {
      const std::vector<Bytes> data = {random_elements(type, kCount, 1),
                                       random_elements(type, kCount, 2),
                                       random_elements(type, kCount, 3)};
      const Bytes expected = reference(type, op, data, kCount, 3);
      for_each_target([&] {
        const size_t bytes = expected.size();
        Guarded a(bytes + 64);
        Guarded b(bytes + 64);
        for (const size_t shift : {0, 1, 2, 4, 8, 17, 31, 32, 60, 63}) {
          void* const dst[] = {a.end() - bytes - shift, b.begin() + shift / 2};
          const void* const src[] = {data[0].data(), dst[0], data[2].data()};
          std::memcpy(dst[0], data[1].data(), bytes);
          reduce({src, 3, dst, 2, kCount, type, op, 3, true});
          for (const void* d : dst) {
            ASSERT_EQ(std::memcmp(d, expected.data(), bytes), 0)
                << describe_difference(type, op, data, static_cast<const uint8_t*>(d),
                                       expected.data(), kCount)
                << "; shift " << shift;
          }
        }
      });
    }
  }
}

TEST_F(ReduceMoreTest, takes_any_number_of_sources_and_destinations) {
  constexpr size_t kMany = 130;
  constexpr size_t kCount = 1001;
  for (const DataType type : {DataType::kF32, DataType::kBf16, DataType::kU8}) {
    for (const RedOp op : {RedOp::kSum, RedOp::kAvg}) {
      std::vector<Bytes> data;
      for (size_t k = 0; k < kMany; ++k) data.push_back(random_elements(type, kCount, k));
      const Bytes expected = reference(type, op, data, kCount, kMany);
      for (const bool stream : {false, true}) {
        for_each_target([&] {
          std::vector<Bytes> outputs(kMany, Bytes(expected.size()));
          std::vector<const void*> src;
          std::vector<void*> dst;
          for (const Bytes& d : data) src.push_back(d.data());
          for (Bytes& o : outputs) dst.push_back(o.data());
          reduce({src.data(), kMany, dst.data(), kMany, kCount, type, op, kMany, stream});
          for (const Bytes& o : outputs) ASSERT_EQ(o, expected);
        });
      }
    }
  }
}

// A partial sum that is averaged over more ranks than its own operands, and divisors of any size.
TEST_F(ReduceMoreTest, divides_by_the_divisor) {
  constexpr size_t kCount = 300;
  for (int t = 0; t < kNumDataTypes; ++t) {
    const auto type = static_cast<DataType>(t);
    for (const size_t num_src : {1, 2, 3}) {
      std::vector<Bytes> data;
      std::vector<const void*> src;
      for (size_t k = 0; k < num_src; ++k) data.push_back(random_elements(type, kCount, 77 + k));
      for (const Bytes& d : data) src.push_back(d.data());
      for (const size_t divisor : {2, 3, 7, 8, 127, 128, 255, 256, 1000, 65536}) {
        const Bytes expected = reference(type, RedOp::kAvg, data, kCount, divisor);
        for_each_target([&] {
          Bytes out(expected.size());
          void* const dst = out.data();
          reduce({src.data(), num_src, &dst, 1, kCount, type, RedOp::kAvg, divisor, false});
          ASSERT_EQ(out, expected)
              << describe_difference(type, RedOp::kAvg, data, out.data(), expected.data(), kCount)
              << "; divisor " << divisor;
        });
      }
    }
  }
}

TEST_F(ReduceMoreTest, names_an_instruction_set_of_this_machine) {
  ASSERT_FALSE(available_targets().empty());
  EXPECT_STREQ(simd_name(), available_targets()[0]->name);
  EXPECT_STREQ(available_targets()[0]->name, target().name);
  for_each_target([] { EXPECT_STREQ(simd_name(), target().name); });
}

}  // namespace
}  // namespace zbccl::kernels::test
