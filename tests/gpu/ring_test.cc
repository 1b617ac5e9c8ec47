// Rings of neighbours. What goes around and is not added up gives the bits of every other way; sums
// in relaxed order are exact where every order is, and elsewhere close, and the same on every rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gpu/device_check.h"
#include "gpu/gpu_case_runner.h"

namespace zbccl::test {
namespace {

using Env = std::vector<std::pair<std::string, std::string>>;

// Large all_reduces whose second half is a kernel of its own, around the ring; everything is large.
const Env kSecondHalf = {{"ZBCCL_DEVICE_TUNING",
                          "ring_min=1,spread_min=0,pull_push_min=0,one_shot_max=0,two_shot_max=0,"
                          "two_shot_direct_max=0"}};
const Env kRing = {{"ZBCCL_ALGORITHM", "ring"}};
const Env kRelaxed = {{"ZBCCL_ALGORITHM", "relaxed_ring"}};

class Rings : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Rings,
                         testing::Values(Place::kGpuEach, Place::kThreads, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

void run_with(const Env& env, Place place, int ranks,
              const std::function<void(GpuRank&, Communicator&)>& body) {
  run_with_communicator({.ranks = ranks, .place = place, .env = env}, body);
}

std::vector<Case> only(const std::vector<Case>& cases, const std::function<bool(const Case&)>& is) {
  std::vector<Case> some;
  std::copy_if(cases.begin(), cases.end(), std::back_inserter(some), is);
  return some;
}

bool is_integer(zbcclDataType_t type) {
  return type == zbcclInt8 || type == zbcclUint8 || type == zbcclInt16 || type == zbcclUint16 ||
         type == zbcclInt32 || type == zbcclUint32 || type == zbcclInt64 || type == zbcclUint64;
}

TEST_P(Rings, GatheredSlicesAreTheSame) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  for (const int most : {2, 3, 4}) {
    if (ranks_at(GetParam(), most) != most) continue;
    run_with(kRing, GetParam(), most, [](GpuRank& rank, Communicator& comm) {
      GpuCaseRunner runner(rank, size_t{12} << 20, 21);
      runner.use(comm);
      const auto gathers = [](const Case& test) { return test.operation == Operation::kAllGather; };
      runner.run_all(sample(only(small_cases(rank.size()), gathers), 3));
      runner.run_all(only(large_cases(rank.size()), gathers));
      // From less than a piece for each block to many.
      for (const size_t count : {1, 5000, 32'768, 100'003, 1'000'001, 2'500'000}) {
        runner.run({.operation = Operation::kAllGather,
                    .type = zbcclUint8,
                    .count = count,
                    .offset = count % 3,
                    .in_place = count % 2 == 0});
        EXPECT_STREQ("ring", comm.last_algorithm());
      }
    });
  }
}

TEST_P(Rings, SecondHalvesAreTheSame) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  for (const int most : {2, 4}) {
    if (ranks_at(GetParam(), most) != most) continue;
    run_with(kSecondHalf, GetParam(), most, [](GpuRank& rank, Communicator& comm) {
      GpuCaseRunner runner(rank, size_t{12} << 20, 22);
      runner.use(comm);
      const auto sums = [](const Case& test) { return test.operation == Operation::kAllReduce; };
      runner.run_all(sample(only(small_cases(rank.size()), sums), 7));
      runner.run_all(only(large_cases(rank.size()), sums));
      runner.run({.type = zbcclBfloat16, .count = 5'000'003, .offset = 1});
      EXPECT_STREQ("pull_push", comm.last_algorithm());
    });
  }
}

TEST_P(Rings, RelaxedOrderIsExactWhereEveryOrderIs) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  for (const int most : {2, 3, 4}) {
    if (ranks_at(GetParam(), most) != most) continue;
    run_with(kRelaxed, GetParam(), most, [](GpuRank& rank, Communicator& comm) {
      GpuCaseRunner runner(rank, size_t{12} << 20, 23);
      runner.use(comm);
      const auto exact = [](const Case& test) {
        return test.operation == Operation::kAllReduce &&
               (is_integer(test.type) || test.op == zbcclMin || test.op == zbcclMax);
      };
      runner.run_all(sample(only(small_cases(rank.size()), exact), 5));
      for (const size_t count : {1, 3, 8191, 65'536, 1'000'003}) {
        for (const zbcclRedOp_t op : {zbcclSum, zbcclAvg, zbcclMax}) {
          runner.run({.type = count % 2 == 0 ? zbcclInt8 : zbcclInt32,
                      .op = op,
                      .count = count,
                      .offset = count % 5,
                      .in_place = op == zbcclAvg});
          EXPECT_STREQ("relaxed_ring", comm.last_algorithm());
        }
      }
      Case special{.type = zbcclBfloat16, .op = zbcclMax, .count = 70'001};
      special.fill = Fill::kSpecial;
      runner.run(special);
      // Whole numbers, which sums of floats keep.
      rank.settle();
      CheckedCall wide(rank, {Checked::kAllReduce, zbcclFloat32, 1'500'007, true}, 31);
      CheckedCall narrow(rank, {Checked::kAllReduce, zbcclBfloat16, 300'001}, 32);
      rank.settle();
      for (int i = 0; i < 3; ++i) {
        wide.round(comm, rank.stream());
        narrow.round(comm, rank.stream());
      }
      EXPECT_EQ(0U, wide.wrong(rank.stream()));
      EXPECT_EQ(0U, narrow.wrong(rank.stream()));
    });
  }
}

TEST_P(Rings, RelaxedSumsAreCloseAndTheSameEverywhere) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_with(kRelaxed, GetParam(), ranks_at(GetParam(), 4), [](GpuRank& rank, Communicator& comm) {
    constexpr size_t kCount = 400'003;
    constexpr size_t kBytes = kCount * sizeof(float);
    const auto ranks = static_cast<size_t>(rank.size());
    const CudaMemory x(kBytes, DeviceMemoryKind::kPool, rank.device());
    std::vector<double> sum(kCount);
    std::vector<double> size(kCount);
    std::vector<float> mine(kCount);
    for (int r = 0; r < rank.size(); ++r) {
      std::mt19937 random(static_cast<uint32_t>(77 + r));
      std::normal_distribution<float> normal;
      for (size_t i = 0; i < kCount; ++i) {
        const float value = normal(random);
        sum[i] += value;
        size[i] += std::abs(value);
        if (r == rank.rank()) mine[i] = value;
      }
    }
    check_cuda(cudaMemcpy(x.data(), mine.data(), kBytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    rank.settle();
    const zbcclCall_t how = rank.call();
    check(zbcclAllReduce(x.data(), x.data(), kCount, zbcclFloat32, zbcclSum, comm.get(), &how));
    rank.stream().wait();
    check_cuda(cudaMemcpy(mine.data(), x.data(), kBytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
    for (size_t i = 0; i < kCount; ++i) {
      ASSERT_LE(std::abs(mine[i] - sum[i]), size[i] * static_cast<double>(ranks) * 0x1p-23)
          << "element " << i;
    }
    Buffer<uint64_t> hash(1);
    Buffer<uint64_t> all(ranks);
    hash[0] = hash_bytes(reinterpret_cast<const std::byte*>(mine.data()), kBytes);
    check(zbcclAllGather(hash.data(), all.data(), 1, zbcclUint64, comm.get(), nullptr));
    for (size_t r = 0; r < ranks; ++r) EXPECT_EQ(hash[0], all[r]) << "rank " << r;
    rank.settle();
  });
}

// Replays, with a grid that makes each block go around many times.
TEST_P(Rings, InGraphs) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  for (const Env& env : {kRelaxed, kSecondHalf}) {
    run_with(env, GetParam(), ranks_at(GetParam(), 4), [](GpuRank& rank, Communicator& comm) {
      CheckedCall reduce(rank, {Checked::kAllReduce, zbcclBfloat16, 200'000}, 41);
      CheckedCall gather(rank, {Checked::kAllGather, zbcclFloat32, 60'000}, 42);
      CheckedCall exchange(rank, {Checked::kAllToAll, zbcclFloat32, 999}, 43);
      const CudaMemory x(size_t{4} << 20, DeviceMemoryKind::kPool, rank.device());
      rank.settle();
      const CudaGraph graph(rank.stream(), [&] {
        reduce.round(comm, rank.stream());
        zbcclCall_t how = rank.call();
        how.max_blocks = 1;
        check(zbcclAllReduce(x.data(), x.data(), 1'000'000, zbcclFloat32, zbcclMax, comm.get(),
                             &how));
        gather.round(comm, rank.stream());
        exchange.round(comm, rank.stream());
      });
      rank.settle();
      for (int i = 0; i < 50; ++i) {
        graph.launch(rank.stream());
        if (i % 4 == 0) reduce.round(comm, rank.stream());
      }
      for (CheckedCall* call : {&reduce, &gather, &exchange}) {
        EXPECT_EQ(0U, call->wrong(rank.stream()));
      }
      rank.settle();
    });
  }
}

}  // namespace
}  // namespace zbccl::test
