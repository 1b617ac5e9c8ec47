// Calls captured in CUDA graphs: replayed a thousand times with inputs that change on the device,
// mixed with eager calls, several graphs and communicators at once.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "gpu/device_check.h"

namespace zbccl::test {
namespace {

constexpr int kReplays = 1000;

class Graphs : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Graphs,
                         testing::Values(Place::kGpuEach, Place::kThreads, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

// Captured by all ranks at once: while one of them captures, another that shares its GPU may not
// wait for the device.
class Captured : public CudaGraph {
 public:
  Captured(GpuRank& rank, const CudaStream& stream, const std::function<void()>& enqueue)
      : CudaGraph((rank.settle(), stream), enqueue) {
    rank.settle();
  }
};

// What a job's ranks do in turn; the ranks settle before and after it.
void run_at(Place place, int most, const std::function<void(GpuRank&, Communicator&)>& body) {
  run_with_communicator({.ranks = ranks_at(place, most), .place = place}, body);
}

std::string text_of(const CheckedCall::Shape& shape) {
  return std::string(checked_name(shape.operation)) + " " + zbcclTypeName(shape.type) + " count " +
         std::to_string(shape.count) + (shape.in_place ? " in place" : "");
}

// From the smallest forms to those that go in pieces.
std::vector<CheckedCall::Shape> shapes() {
  std::vector<CheckedCall::Shape> list;
  for (int i = 0; i < kNumChecked; ++i) {
    const auto operation = static_cast<Checked>(i);
    list.push_back({operation, zbcclBfloat16, 33, false, DeviceMemoryKind::kPool});
    list.push_back({operation, zbcclFloat32, 16'384, false, DeviceMemoryKind::kRegistered});
    list.push_back({operation, zbcclUint32, 65'537, false, DeviceMemoryKind::kPlain});
  }
  list.push_back({Checked::kAllReduce, zbcclBfloat16, 524'288, true, DeviceMemoryKind::kPool});
  list.push_back({Checked::kAllGather, zbcclFloat32, 131'072, true, DeviceMemoryKind::kPool});
  return list;
}

TEST_P(Graphs, AThousandReplaysOfChangingInputs) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), 4, [](GpuRank& rank, Communicator& comm) {
    uint32_t seed = 100;
    for (const CheckedCall::Shape& shape : shapes()) {
      rank.note(text_of(shape));
      CheckedCall call(rank, shape, seed++);
      const Captured graph(rank, rank.stream(), [&] { call.round(comm, rank.stream()); });
      rank.settle();
      // The whole thousand for one size of each operation.
      const int replays = shape.count == 16'384 ? kReplays : kReplays / 10;
      for (int i = 0; i < replays; ++i) graph.launch(rank.stream());
      EXPECT_EQ(0U, call.wrong(rank.stream())) << text_of(shape);
      rank.settle();
    }
  });
}

TEST_P(Graphs, ManyCallsInOneGraph) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), 4, [](GpuRank& rank, Communicator& comm) {
    std::vector<std::unique_ptr<CheckedCall>> calls;
    uint32_t seed = 200;
    for (const CheckedCall::Shape& shape : shapes()) {
      calls.push_back(std::make_unique<CheckedCall>(rank, shape, seed++));
    }
    const Captured graph(rank, rank.stream(), [&] {
      for (int twice = 0; twice < 2; ++twice) {
        for (const auto& call : calls) call->round(comm, rank.stream());
      }
    });
    rank.settle();
    for (int i = 0; i < 30; ++i) graph.launch(rank.stream());
    for (const auto& call : calls) EXPECT_EQ(0U, call->wrong(rank.stream()));
    rank.settle();
  });
}

TEST_P(Graphs, ReplaysMixedWithEagerCalls) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), 4, [](GpuRank& rank, Communicator& comm) {
    CheckedCall captured(rank, {Checked::kAllReduce, zbcclBfloat16, 4096}, 301);
    CheckedCall second(rank, {Checked::kAllGather, zbcclFloat32, 5000}, 302);
    CheckedCall eager(rank, {Checked::kAllReduce, zbcclFloat32, 70'001}, 303);
    CheckedCall small(rank, {Checked::kReduceScatter, zbcclUint32, 7}, 304);
    const Captured graph(rank, rank.stream(), [&] { captured.round(comm, rank.stream()); });
    const Captured other(rank, rank.stream(), [&] {
      second.round(comm, rank.stream());
      captured.round(comm, rank.stream());
    });
    rank.settle();
    for (int i = 0; i < 300; ++i) {
      graph.launch(rank.stream());
      if (i % 2 == 0) eager.round(comm, rank.stream());
      if (i % 3 == 0) other.launch(rank.stream());
      if (i % 5 == 0) small.round(comm, rank.stream());
      if (i % 50 == 0) rank.stream().wait();
    }
    for (CheckedCall* call : {&captured, &second, &eager, &small}) {
      EXPECT_EQ(0U, call->wrong(rank.stream()));
    }
    rank.settle();
  });
}

TEST_P(Graphs, CapturedAgainAndAgain) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), 4, [](GpuRank& rank, Communicator& comm) {
    std::vector<std::unique_ptr<CheckedCall>> calls;
    for (uint32_t i = 0; i < 4; ++i) {
      calls.push_back(std::make_unique<CheckedCall>(
          rank, CheckedCall::Shape{static_cast<Checked>(i), zbcclFloat32, size_t{1000} << i},
          400 + i));
    }
    for (int i = 0; i < 24; ++i) {
      CheckedCall& call = *calls[static_cast<size_t>(i) % calls.size()];
      rank.settle();
      const Captured graph(rank, rank.stream(), [&] { call.round(comm, rank.stream()); });
      rank.settle();
      for (int j = 0; j <= i % 3; ++j) graph.launch(rank.stream());
      rank.settle();
    }
    for (const auto& call : calls) EXPECT_EQ(0U, call->wrong(rank.stream()));
  });
}

// Memory that no peer has seen when the call is captured.
TEST_P(Graphs, CapturedOnMemoryThatIsNew) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), 4, [](GpuRank& rank, Communicator& comm) {
    uint32_t seed = 500;
    for (const DeviceMemoryKind memory :
         {DeviceMemoryKind::kPool, DeviceMemoryKind::kPlain, DeviceMemoryKind::kRegistered}) {
      for (int i = 0; i < 4; ++i) {
        const auto operation = static_cast<Checked>(i);
        const size_t count = size_t{300'000} << i;
        CheckedCall call(rank, {operation, zbcclBfloat16, count, false, memory}, seed++);
        rank.settle();
        const Captured graph(rank, rank.stream(), [&] { call.round(comm, rank.stream()); });
        rank.settle();
        for (int j = 0; j < 3; ++j) graph.launch(rank.stream());
        EXPECT_EQ(0U, call.wrong(rank.stream()));
        rank.settle();
      }
    }
  });
}

// Two communicators of the same ranks, each with a stream, graphs of its own and eager calls, at
// the same time.
TEST_P(Graphs, TwoCommunicatorsAtOnce) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), GetParam() == Place::kOneGpu ? 2 : 4, [](GpuRank& rank, Communicator& comm) {
    Communicator other = rank.connect();
    const CudaStream stream;
    CheckedCall first(rank, {Checked::kAllReduce, zbcclBfloat16, 32'768}, 601);
    CheckedCall second(rank, {Checked::kAllReduce, zbcclFloat32, 9000}, 602);
    CheckedCall eager(rank, {Checked::kAllGather, zbcclFloat32, 1234}, 603);
    const Captured graph(rank, rank.stream(), [&] { first.round(comm, rank.stream()); });
    const Captured beside(rank, stream, [&] { second.round(other, stream); });
    rank.settle();
    for (int i = 0; i < 300; ++i) {
      graph.launch(rank.stream());
      beside.launch(stream);
      if (i % 4 == 0) eager.round(other, stream);
    }
    EXPECT_EQ(0U, first.wrong(rank.stream()));
    EXPECT_EQ(0U, second.wrong(stream));
    EXPECT_EQ(0U, eager.wrong(stream));
    rank.settle();
    EXPECT_EQ(zbcclSuccess, other.async_error());
    other.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
