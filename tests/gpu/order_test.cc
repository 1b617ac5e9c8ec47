// The order of things on streams: inputs overwritten right after a call, ranks that come late,
// calls one behind the other without the host in between, one communicator on several streams.
// Every output is checked on the device; a stale or early word shows as a wrong element.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpu/device_check.h"
#include "support/data.h"

namespace zbccl::test {
namespace {

class Order : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Order,
                         testing::Values(Place::kGpuEach, Place::kThreads, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

void run_at(Place place, const std::function<void(GpuRank&, Communicator&)>& body) {
  run_with_communicator({.ranks = ranks_at(place, 4), .place = place}, body);
}

using Calls = std::vector<std::unique_ptr<CheckedCall>>;

// Calls of every operation, of sizes that take different algorithms and grids.
Calls make_calls(GpuRank& rank, uint32_t seed) {
  constexpr size_t kCounts[] = {5, 2048, 40'000, 300'001};
  constexpr zbcclDataType_t kTypes[] = {zbcclBfloat16, zbcclFloat32, zbcclUint32};
  Calls calls;
  for (int i = 0; i < kNumChecked; ++i) {
    for (const size_t count : kCounts) {
      const auto kind = static_cast<DeviceMemoryKind>(calls.size() % 3);
      calls.push_back(std::make_unique<CheckedCall>(
          rank,
          CheckedCall::Shape{static_cast<Checked>(i), kTypes[calls.size() % 3], count,
                             i == 0 && count == 2048, kind},
          seed++));
    }
  }
  rank.settle();
  return calls;
}

void expect_right(GpuRank& rank, const Calls& calls, const CudaStream& stream) {
  for (size_t i = 0; i < calls.size(); ++i) {
    EXPECT_EQ(0U, calls[i]->wrong(stream)) << "call " << i << ", rank " << rank.rank();
  }
}

// Each round writes the input, calls, writes over the input and checks the output; thousands of
// them are on the stream at a time.
TEST_P(Order, InputsOverwrittenRightAfterTheCall) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), [](GpuRank& rank, Communicator& comm) {
    const Calls calls = make_calls(rank, 10);
    for (int i = 0; i < 40; ++i) {
      for (const auto& call : calls) call->round(comm, rank.stream());
    }
    expect_right(rank, calls, rank.stream());
    rank.settle();
  });
}

// Pseudo-random pauses, another one on each rank, before and after the calls.
TEST_P(Order, RanksThatComeLate) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), [](GpuRank& rank, Communicator& comm) {
    const Calls calls = make_calls(rank, 110);
    const auto pause = [&](uint64_t i) {
      const uint64_t h = seed_of(i, static_cast<uint64_t>(rank.rank()));
      if (h % 3 == 0) launch_delay(rank.stream().get(), static_cast<int64_t>(h >> 8) % 400);
    };
    for (uint64_t i = 0; i < 6; ++i) {
      for (const auto& call : calls) {
        const uint64_t place = i * 1000 + static_cast<uint64_t>(&call - calls.data());
        call->fill(rank.stream(), 0);
        pause(2 * place);
        call->run(comm, rank.stream());
        pause(2 * place + 1);
        call->spoil_input(rank.stream());
        call->check(rank.stream(), 0);
        call->advance(rank.stream());
      }
    }
    expect_right(rank, calls, rank.stream());
    rank.settle();
  });
}

// One rank lags by several calls' worth of time; what the others send ahead must not run into what
// it has not read.
TEST_P(Order, OneRankFarBehind) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), [](GpuRank& rank, Communicator& comm) {
    const Calls calls = make_calls(rank, 210);
    for (int late = 0; late < rank.size(); ++late) {
      if (rank.rank() == late) launch_delay(rank.stream().get(), 20'000);
      for (const auto& call : calls) call->round(comm, rank.stream());
      // The same call again and again: its landing memory is used in turn.
      if (rank.rank() == late) launch_delay(rank.stream().get(), 5000);
      for (int i = 0; i < 20; ++i) calls[1]->round(comm, rank.stream());
    }
    expect_right(rank, calls, rank.stream());
    rank.settle();
  });
}

// Short calls in the fastest succession, sizes changing with each.
TEST_P(Order, ThousandsOfSmallCalls) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), [](GpuRank& rank, Communicator& comm) {
    Calls calls;
    constexpr size_t kCounts[] = {1, 3, 8, 64, 511, 1000, 4096, 16'384};
    uint32_t seed = 310;
    for (const size_t count : kCounts) {
      for (const zbcclDataType_t type : {zbcclBfloat16, zbcclUint32}) {
        calls.push_back(std::make_unique<CheckedCall>(
            rank, CheckedCall::Shape{Checked::kAllReduce, type, count}, seed++));
      }
    }
    rank.settle();
    for (uint64_t i = 0; i < 2000; ++i) {
      calls[seed_of(i, 7) % calls.size()]->round(comm, rank.stream());
    }
    expect_right(rank, calls, rank.stream());
    rank.settle();
  });
}

// Calls of one communicator on three streams are made in the order of the calls.
TEST_P(Order, OneCommunicatorOnSeveralStreams) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), [](GpuRank& rank, Communicator& comm) {
    const CudaStream second;
    const CudaStream third;
    const CudaStream* const streams[] = {&rank.stream(), &second, &third};
    Calls calls;
    for (uint32_t i = 0; i < 3; ++i) {
      calls.push_back(std::make_unique<CheckedCall>(
          rank, CheckedCall::Shape{Checked::kAllReduce, zbcclFloat32, size_t{3000} << (2 * i)},
          410 + i));
    }
    rank.settle();
    for (uint64_t i = 0; i < 150; ++i) {
      const size_t which = seed_of(i, 3) % 3;
      calls[which]->round(comm, *streams[which]);
    }
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(0U, calls[i]->wrong(*streams[i]));
    rank.settle();
  });
}

// The legacy default stream, NULL, is a stream like others; a barrier needs one to be on the
// device.
TEST_P(Order, TheDefaultStreamAndBarriers) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  // On one GPU the legacy stream of all ranks would be the same one.
  if (GetParam() == Place::kOneGpu) GTEST_SKIP() << "ranks on one GPU share the default stream";
  run_at(GetParam(), [](GpuRank& rank, Communicator& comm) {
    const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
    rank.settle();
    std::vector<float> values(1024, static_cast<float>(rank.rank() + 1));
    check_cuda(cudaMemcpy(x.data(), values.data(), 4096, cudaMemcpyHostToDevice), "cudaMemcpy");
    check(zbcclAllReduce(x.data(), x.data(), 1024, zbcclFloat32, zbcclSum, comm.get(), nullptr));
    check_cuda(cudaMemcpy(values.data(), x.data(), 4096, cudaMemcpyDeviceToHost), "cudaMemcpy");
    const int n = rank.size();
    EXPECT_EQ(static_cast<float>(n * (n + 1) / 2), values[0]);
    EXPECT_EQ(values[0], values[1023]);
    // Nobody leaves a barrier before the last rank has come.
    const zbcclCall_t how = rank.call();
    for (int late = 0; late < n; ++late) {
      rank.settle();
      if (rank.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
      rank.base().board().publish(rank.rank(), late, static_cast<uint64_t>(now()));
      check(zbcclBarrier(comm.get(), &how));
      rank.stream().wait();
      const auto left = static_cast<uint64_t>(now());
      EXPECT_GE(left, rank.base().board().value(late, late));
    }
    rank.settle();
  });
}

}  // namespace
}  // namespace zbccl::test
