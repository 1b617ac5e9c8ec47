// The device's arithmetic on a GPU: every type, operator and number of ranks against the host
// kernels, conversions of single elements and poison against the same sources on the host.
#include <gtest/gtest.h>

#include <cstring>

#include "cuda_numbers_cases.h"
#include "gpu/device_array.h"
#include "kernels/cuda/numbers.h"

namespace zbccl::cuda::test {
namespace {

using zbccl::test::DeviceArray;
using zbccl::test::wait_for_kernels;

constexpr int kThreads = 256;

int blocks_for(size_t count) { return static_cast<int>((count + kThreads - 1) / kThreads); }

__device__ size_t own_index() { return static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Pack i of rank k is in[i + k * packs].
template <DataType kType>
__global__ void reduce_any(const Pack* in, Pack* out, size_t packs, int nranks, RedOp op) {
  const size_t i = own_index();
  if (i < packs) out[i] = reduce_pack<kType>(in + i, packs, nranks, op);
}

// The operator and the number of ranks fixed, as in the kernels for inference.
template <DataType kType, int kRanks, RedOp kOp>
__global__ void reduce_fixed(const Pack* in, Pack* out, size_t packs) {
  const size_t i = own_index();
  if (i >= packs) return;
  Pack x[kRanks];
#pragma unroll
  for (int k = 0; k < kRanks; ++k) x[k] = in[i + k * packs];
  typename Vec<kType>::Sum sum;
  Vec<kType>::first(sum, x[0]);
#pragma unroll
  for (int k = 1; k < kRanks; ++k) Vec<kType>::add(sum, x[k], kOp);
  out[i] = Vec<kType>::finish(sum, kOp, kRanks);
}

template <DataType kType, RedOp kOp>
bool launch_fixed(const Pack* in, Pack* out, size_t packs, int nranks) {
  const int blocks = blocks_for(packs);
  switch (nranks) {
    case 2: reduce_fixed<kType, 2, kOp><<<blocks, kThreads>>>(in, out, packs); return true;
    case 3: reduce_fixed<kType, 3, kOp><<<blocks, kThreads>>>(in, out, packs); return true;
    case 4: reduce_fixed<kType, 4, kOp><<<blocks, kThreads>>>(in, out, packs); return true;
    case 8: reduce_fixed<kType, 8, kOp><<<blocks, kThreads>>>(in, out, packs); return true;
    default: return false;
  }
}

DeviceArray<Pack> upload(const Operands& operands) {
  std::vector<Pack> packs;
  for (const Bytes& block : operands.of_rank) {
    const size_t before = packs.size();
    packs.resize(before + block.size() / sizeof(Pack));
    std::memcpy(packs.data() + before, block.data(), block.size());
  }
  return DeviceArray<Pack>(packs);
}

void expect_same(DataType type, RedOp op, const Operands& operands, const DeviceArray<Pack>& out,
                 const Bytes& expected) {
  const std::vector<Pack> packs = out.download();
  Bytes got(expected.size());
  std::memcpy(got.data(), packs.data(), got.size());
  ASSERT_TRUE(got == expected) << kernels::test::describe_difference(
      type, op, operands.of_rank, got.data(), expected.data(), operands.count);
}

class GpuNumbersTest : public zbccl::test::OnGpu<testing::TestWithParam<int>> {
 protected:
  static DataType type() { return static_cast<DataType>(GetParam()); }
};

TEST_P(GpuNumbersTest, equal_the_host_kernels) {
  for (const int nranks : kRankCounts) {
    for (const Operands& operands : operand_sets(type(), nranks)) {
      const DeviceArray<Pack> in = upload(operands);
      const size_t packs = in.count() / static_cast<size_t>(nranks);
      for (int o = 0; o < kNumRedOps; ++o) {
        const auto op = static_cast<RedOp>(o);
        const Bytes expected = host_result(type(), op, operands);
        const DeviceArray<Pack> out(packs);
        with_type(type(), [&]<DataType kType>() {
          reduce_any<kType>
              <<<blocks_for(packs), kThreads>>>(in.get(), out.get(), packs, nranks, op);
        });
        wait_for_kernels();
        expect_same(type(), op, operands, out, expected);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(GpuNumbersTest, fixed_sums_equal_the_host_kernels) {
  for (const int nranks : {2, 3, 4, 8}) {
    for (const Operands& operands : operand_sets(type(), nranks)) {
      const DeviceArray<Pack> in = upload(operands);
      const size_t packs = in.count() / static_cast<size_t>(nranks);
      for (const RedOp op : {RedOp::kSum, RedOp::kAvg}) {
        const Bytes expected = host_result(type(), op, operands);
        const DeviceArray<Pack> out(packs);
        with_type(type(), [&]<DataType kType>() {
          if (op == RedOp::kSum) {
            launch_fixed<kType, RedOp::kSum>(in.get(), out.get(), packs, nranks);
          } else {
            launch_fixed<kType, RedOp::kAvg>(in.get(), out.get(), packs, nranks);
          }
        });
        wait_for_kernels();
        expect_same(type(), op, operands, out, expected);
        if (HasFatalFailure()) return;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GpuNumbersTest, testing::Range(0, kNumDataTypes),
                         [](const testing::TestParamInfo<int>& test) {
                           return type_name(static_cast<DataType>(test.param));
                         });

class GpuConversionTest : public GpuNumbersTest {};

// v's sign, exponent and upper mantissa are the index, its lower mantissa is around a tie or zero.
ZBCCL_BOTH float float_at(size_t index) {
  constexpr uint32_t kLow[] = {0x000, 0x001, 0x0FF, 0x100, 0x1FF, 0x200, 0x201, 0x3FF};
  return float_of(static_cast<uint32_t>(index / 8) << 10 | kLow[index % 8]);
}
constexpr size_t kFloats = size_t{8} << 22;

template <DataType kType>
__global__ void convert(typename Vec<kType>::Bits* codes, uint32_t* back) {
  const size_t i = own_index();
  if (i >= kFloats) return;
  const typename Vec<kType>::Bits code = Vec<kType>::from_float(float_at(i));
  codes[i] = code;
  back[i] = bits_of(Vec<kType>::to_float(code));
}

TEST_P(GpuConversionTest, of_floats_of_every_size) {
  with_type(type(), [&]<DataType kType>() {
    using V = Vec<kType>;
    if constexpr (V::kHasPoison) {
      const DeviceArray<typename V::Bits> codes(kFloats);
      const DeviceArray<uint32_t> back(kFloats);
      convert<kType><<<blocks_for(kFloats), kThreads>>>(codes.get(), back.get());
      wait_for_kernels();
      const auto got = codes.download();
      const auto got_back = back.download();
      for (size_t i = 0; i < kFloats; ++i) {
        const float v = float_at(i);
        ASSERT_EQ(got[i], V::from_float(v)) << v << ", element " << i;
        const float expected = V::to_float(got[i]);
        if (is_nan(expected)) {
          ASSERT_TRUE(is_nan(float_of(got_back[i])));  // of any payload: finish() replaces it
        } else {
          ASSERT_EQ(got_back[i], bits_of(expected)) << v;
        }
      }
    }
  });
}

template <DataType kType>
__global__ void inspect(const Pack* in, Pack* clean, uint32_t* poisoned, size_t packs) {
  const size_t i = own_index();
  if (i >= packs) return;
  poisoned[i] = Vec<kType>::poisoned(in[i]) ? 1 : 0;
  clean[i] = Vec<kType>::without_poison(in[i]);
}

TEST_P(GpuConversionTest, poison_is_recognised_and_replaced) {
  with_type(type(), [&]<DataType kType>() {
    using V = Vec<kType>;
    if constexpr (V::kHasPoison) {
      std::vector<Pack> packs;
      for (uint32_t i = 0; i < 4096; ++i) {
        Pack x;
        for (uint32_t w = 0; w < 4; ++w) {
          x.w[w] = (i >> w & 1) != 0 ? kPoisonWord : kPoisonWord - (i >> 4) * (w + 1);
        }
        packs.push_back(x);
      }
      const DeviceArray<Pack> in(packs);
      const DeviceArray<Pack> clean(packs.size());
      const DeviceArray<uint32_t> poisoned(packs.size());
      inspect<kType><<<blocks_for(packs.size()), kThreads>>>(in.get(), clean.get(), poisoned.get(),
                                                             packs.size());
      wait_for_kernels();
      const std::vector<Pack> got = clean.download();
      const std::vector<uint32_t> flags = poisoned.download();
      for (size_t i = 0; i < packs.size(); ++i) {
        ASSERT_EQ(flags[i] != 0, V::poisoned(packs[i])) << i;
        const Pack expected = V::without_poison(packs[i]);
        ASSERT_EQ(std::memcmp(&got[i], &expected, sizeof expected), 0) << i;
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Floats, GpuConversionTest,
                         testing::Values(static_cast<int>(DataType::kF32),
                                         static_cast<int>(DataType::kF16),
                                         static_cast<int>(DataType::kBf16),
                                         static_cast<int>(DataType::kE4m3),
                                         static_cast<int>(DataType::kE5m2)),
                         [](const testing::TestParamInfo<int>& test) {
                           return type_name(static_cast<DataType>(test.param));
                         });

}  // namespace
}  // namespace zbccl::cuda::test
