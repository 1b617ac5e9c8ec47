// Movements by copy engines: the same bytes as by kernels, eagerly and in graphs, mixed with calls
// that take other ways; where the ranks' calls differ, the call itself says so on every rank.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "gpu/device_check.h"
#include "gpu/gpu_case_runner.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

const std::pair<std::string, std::string> kForced = {"ZBCCL_ALGORITHM", "copy_engine"};
// From 64 KB a block on.
const std::pair<std::string, std::string> kAskedFor = {"ZBCCL_DEVICE_TUNING",
                                                       "copy_engine_min=65536"};

class CopyEngine : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, CopyEngine,
                         testing::Values(Place::kGpuEach, Place::kThreads, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

void run_with(const std::pair<std::string, std::string>& env, Place place, int most,
              const std::function<void(GpuRank&, Communicator&)>& body) {
  run_with_communicator({.ranks = ranks_at(place, most), .place = place, .env = {env}}, body);
}

TEST_P(CopyEngine, SameBits) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  for (const int most : {2, 4}) {
    run_with(kForced, GetParam(), most, [](GpuRank& rank, Communicator& comm) {
      GpuCaseRunner runner(rank, size_t{12} << 20, 3);
      runner.use(comm);
      runner.run_all(sample(small_cases(rank.size()), 23));
      runner.run_all(sample(large_cases(rank.size()), 2));
      runner.run({.operation = Operation::kAllGather, .type = zbcclUint8, .count = 1'000'003});
      EXPECT_STREQ("copy_engine", comm.last_algorithm());
    });
  }
}

// Kernels and copies in turn: below the limit, above it, and what copy engines do not do.
TEST_P(CopyEngine, AmongOtherCalls) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_with(kAskedFor, GetParam(), 3, [](GpuRank& rank, Communicator& comm) {
    CheckedCall small(rank, {Checked::kAllGather, zbcclFloat32, 1000}, 1);
    CheckedCall gather(rank, {Checked::kAllGather, zbcclFloat32, 50'000, true}, 2);
    CheckedCall exchange(rank, {Checked::kAllToAll, zbcclBfloat16, 40'001}, 3);
    CheckedCall broadcast(rank, {Checked::kBroadcast, zbcclFloat32, 100'000}, 4);
    CheckedCall reduce(rank, {Checked::kAllReduce, zbcclBfloat16, 30'000}, 5);
    const CudaStream second;
    rank.settle();
    for (int i = 0; i < 20; ++i) {
      small.round(comm, rank.stream());
      EXPECT_STRNE("copy_engine", comm.last_algorithm());
      gather.round(comm, rank.stream());
      EXPECT_STREQ("copy_engine", comm.last_algorithm());
      reduce.round(comm, rank.stream());
      exchange.round(comm, second);
      broadcast.round(comm, rank.stream());
      EXPECT_STREQ("copy_engine", comm.last_algorithm());
    }
    for (CheckedCall* call : {&small, &gather, &reduce, &broadcast}) {
      EXPECT_EQ(0U, call->wrong(rank.stream()));
    }
    EXPECT_EQ(0U, exchange.wrong(second));
    rank.settle();
  });
}

TEST_P(CopyEngine, InGraphs) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_with(kAskedFor, GetParam(), 4, [](GpuRank& rank, Communicator& comm) {
    CheckedCall gather(rank, {Checked::kAllGather, zbcclFloat32, 100'000}, 11);
    CheckedCall exchange(rank, {Checked::kAllToAll, zbcclFloat32, 20'000}, 12);
    CheckedCall reduce(rank, {Checked::kAllReduce, zbcclBfloat16, 5000}, 13);
    rank.settle();
    const CudaGraph graph(rank.stream(), [&] {
      gather.round(comm, rank.stream());
      reduce.round(comm, rank.stream());
      exchange.round(comm, rank.stream());
    });
    rank.settle();
    for (int i = 0; i < 100; ++i) {
      graph.launch(rank.stream());
      if (i % 7 == 0) exchange.round(comm, rank.stream());
    }
    for (CheckedCall* call : {&gather, &reduce, &exchange}) {
      EXPECT_EQ(0U, call->wrong(rank.stream()));
    }
    rank.settle();
  });
}

TEST_P(CopyEngine, CallsThatDiffer) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_with(kForced, GetParam(), 3, [](GpuRank& rank, Communicator& comm) {
    const CudaMemory x(1 << 20, DeviceMemoryKind::kPool, rank.device());
    const CudaMemory y(1 << 20, DeviceMemoryKind::kPool, rank.device());
    CheckedCall after(rank, {Checked::kAllGather, zbcclFloat32, 5000}, 21);
    rank.settle();
    const zbcclCall_t how = rank.call();
    const bool odd = rank.rank() == rank.size() - 1;
    for (int i = 0; i < 4; ++i) {
      expect_error(
          zbcclInvalidUsage,
          zbcclAllGather(x.data(), y.data(), odd ? 999 : 1000, zbcclFloat32, comm.get(), &how),
          {"all_gather", "3996", "4000"});
      expect_error(zbcclInvalidUsage,
                   odd ? zbcclAllToAll(x.data(), y.data(), 1000, zbcclFloat32, comm.get(), &how)
                       : zbcclAllGather(x.data(), y.data(), 1000, zbcclFloat32, comm.get(), &how),
                   {"all_gather", "all_to_all"});
      after.round(comm, rank.stream());
      EXPECT_EQ(0U, after.wrong(rank.stream()));
      EXPECT_EQ(zbcclSuccess, comm.async_error());
    }
    rank.settle();
  });
}

}  // namespace
}  // namespace zbccl::test
