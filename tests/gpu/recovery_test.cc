// What follows calls that did not agree: every rank gets one error, all that was enqueued between
// is left out, and the communicator works on, eagerly and in graphs that were captured before. The
// calls themselves are in usage_test.cc.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpu/device_check.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr seconds kSoon{5};

class Recovery : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Recovery, testing::Values(Place::kGpuEach, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

// One element more on the last rank.
void call_differently(GpuRank& rank, Communicator& comm, const CudaMemory& x, size_t count) {
  const zbcclCall_t how = rank.call();
  const size_t more = rank.rank() == rank.size() - 1 ? 1 : 0;
  check(zbcclAllReduce(x.data(), x.data(), count + more, zbcclFloat32, zbcclSum, comm.get(), &how));
}

// Calls until one returns the error, as a program does that looks at nothing else.
void call_until_told(GpuRank& rank, Communicator& comm, const CudaMemory& x) {
  const zbcclCall_t how = rank.call();
  const auto end = steady_clock::now() + kSoon;
  zbcclResult_t got = zbcclSuccess;
  int calls = 0;
  while (got == zbcclSuccess && steady_clock::now() < end) {
    got = zbcclAllReduce(x.data(), x.data(), 64, zbcclFloat32, zbcclSum, comm.get(), &how);
    if (++calls % 8 == 0) rank.stream().wait();
  }
  expect_error(zbcclInvalidUsage, got, {"rank", "on the device"});
}

void expect_right(GpuRank& rank, Communicator& comm, CheckedCall& call, const char* after) {
  call.round(comm, rank.stream());
  EXPECT_EQ(0U, call.wrong(rank.stream())) << after;
  EXPECT_EQ(zbcclSuccess, comm.async_error()) << after;
}

// The ranks are told at different calls, and still agree about the next one. Again and again, over
// the end of the epochs.
TEST_P(Recovery, CallsInBetweenAreLeftOut) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 4),
               .place = GetParam(),
               .env = {{"ZBCCL_EPOCH_BASE", "4294967240"}}},
              [](GpuRank& rank) {
                const CudaMemory x(80'000, DeviceMemoryKind::kPool, rank.device());
                CheckedCall small(rank, {Checked::kAllReduce, zbcclBfloat16, 3000}, 1);
                CheckedCall large(rank, {Checked::kAllReduce, zbcclFloat32, 700'000}, 2);
                CheckedCall gather(rank, {Checked::kAllGather, zbcclFloat32, 50'000}, 3);
                Communicator comm = rank.connect();
                rank.settle();
                for (int i = 0; i < 12; ++i) {
                  call_differently(rank, comm, x, i % 2 == 0 ? 1000 : 19'000);
                  std::this_thread::sleep_for(milliseconds(rank.rank() * (i % 4)));
                  call_until_told(rank, comm, x);
                  rank.meet();
                  expect_right(rank, comm, small, "told");
                  expect_right(rank, comm, large, "told");
                  expect_right(rank, comm, gather, "told");
                }
                rank.settle();
                comm.destroy();
                rank.settle();
              });
}

// A graph from before is left out while the ranks have not been told, and works after that with no
// eager call in between; the calls that differ are in graphs, too.
TEST_P(Recovery, Graphs) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 3), .place = GetParam()}, [](GpuRank& rank) {
    const CudaMemory x(80'000, DeviceMemoryKind::kPool, rank.device());
    CheckedCall call(rank, {Checked::kAllReduce, zbcclBfloat16, 30'000}, 11);
    CheckedCall eager(rank, {Checked::kAllGather, zbcclFloat32, 3000}, 12);
    Communicator comm = rank.connect();
    rank.settle();
    const CudaGraph before(rank.stream(), [&] { call.run(comm, rank.stream()); });
    rank.settle();
    const CudaGraph differing(rank.stream(), [&] {
      call.run(comm, rank.stream());
      call_differently(rank, comm, x, 5000);
      call.run(comm, rank.stream());
    });
    rank.settle();
    uint32_t step = 0;
    const auto replay = [&] {
      call.fill(rank.stream(), step);
      before.launch(rank.stream());
      call.check(rank.stream(), step++);
    };
    for (int i = 0; i < 6; ++i) {
      replay();
      EXPECT_EQ(0U, call.wrong(rank.stream()));
      rank.settle();
      differing.launch(rank.stream());
      for (int j = 0; j < 3; ++j) before.launch(rank.stream());
      rank.stream().wait();
      EXPECT_EQ(zbcclInvalidUsage, wait_for_error(comm, kSoon));
      call_until_told(rank, comm, x);
      rank.meet();
      if (i % 2 == 0) {
        for (int j = 0; j < 3; ++j) replay();
      } else {
        expect_right(rank, comm, eager, "an eager call after a graph");
      }
      EXPECT_EQ(0U, call.wrong(rank.stream()));
      EXPECT_EQ(zbcclSuccess, comm.async_error());
      rank.settle();
    }
    comm.destroy();
    rank.settle();
  });
}

// The call that returns the error is in a graph, and so is what comes after it: the team is taken
// back into use by the first replay, and left alone by the others.
TEST_P(Recovery, ToldWhileCapturing) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = 2, .place = GetParam()}, [](GpuRank& rank) {
    const CudaMemory x(80'000, DeviceMemoryKind::kPool, rank.device());
    CheckedCall call(rank, {Checked::kAllReduce, zbcclBfloat16, 30'000}, 21);
    CheckedCall eager(rank, {Checked::kAllGather, zbcclFloat32, 3000}, 22);
    Communicator comm = rank.connect();
    for (int i = 0; i < 4; ++i) {
      rank.settle();
      call_differently(rank, comm, x, 5000);
      rank.stream().wait();
      EXPECT_EQ(zbcclInvalidUsage, wait_for_error(comm, kSoon));
      rank.settle();
      const CudaGraph graph(rank.stream(), [&] {
        const zbcclCall_t how = rank.call();
        expect_error(zbcclInvalidUsage, zbcclAllReduce(x.data(), x.data(), 8, zbcclFloat32,
                                                       zbcclSum, comm.get(), &how));
        call.round(comm, rank.stream());
        call.round(comm, rank.stream());
      });
      rank.settle();
      // Either may come first.
      if (i % 2 == 1) expect_right(rank, comm, eager, "an eager call before the graph");
      for (int j = 0; j < 4; ++j) graph.launch(rank.stream());
      expect_right(rank, comm, eager, "an eager call after the graph");
      graph.launch(rank.stream());
      EXPECT_EQ(0U, call.wrong(rank.stream()));
      EXPECT_EQ(zbcclSuccess, comm.async_error());
      rank.settle();
    }
    comm.destroy();
    rank.settle();
  });
}

// Both sides of a message differ: the other ranks are told as well, and messages are counted anew.
TEST_P(Recovery, Messages) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 3), .place = GetParam()}, [](GpuRank& rank) {
    constexpr size_t kMost = 100'000;
    const CudaMemory x(4 * kMost, DeviceMemoryKind::kPool, rank.device());
    const CudaMemory y(4 * kMost, DeviceMemoryKind::kPool, rank.device());
    CheckedCall all(rank, {Checked::kAllReduce, zbcclBfloat16, 3000}, 31);
    Communicator comm = rank.connect();
    rank.settle();
    const zbcclCall_t how = rank.call();
    const int next = (rank.rank() + 1) % rank.size();
    const int before = (rank.rank() + rank.size() - 1) % rank.size();
    std::vector<float> values(kMost);
    for (int i = 0; i < 5; ++i) {
      // As many messages as the round, on some ranks more than on others.
      for (int j = 0; j < i; ++j) {
        if (rank.rank() == 0) check(zbcclSend(x.data(), 7, zbcclFloat32, 1, comm.get(), &how));
        if (rank.rank() == 1) check(zbcclRecv(y.data(), 7, zbcclFloat32, 0, comm.get(), &how));
      }
      if (rank.rank() == 0) {
        check(zbcclSend(x.data(), kMost, zbcclFloat32, 1, comm.get(), &how));
      } else if (rank.rank() == 1) {
        check(zbcclRecv(y.data(), kMost - 1, zbcclFloat32, 0, comm.get(), &how));
      }
      const auto end = steady_clock::now() + kSoon;
      zbcclResult_t got = zbcclSuccess;
      while (got == zbcclSuccess && steady_clock::now() < end) {
        got = zbcclBarrier(comm.get(), &how);
        rank.stream().wait();
      }
      expect_error(zbcclInvalidUsage, got, {"rank"});
      rank.settle();
      // A ring, of what says whose it is.
      const auto number = [&](int of, size_t k) {
        return static_cast<float>(static_cast<size_t>(1000 * i + of) + k % 91);
      };
      for (size_t k = 0; k < kMost; ++k) values[k] = number(rank.rank(), k);
      check_cuda(cudaMemcpy(x.data(), values.data(), 4 * kMost, cudaMemcpyHostToDevice),
                 "cudaMemcpy");
      check_cuda(cudaMemset(y.data(), 0, 4 * kMost), "cudaMemset");
      check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
      rank.settle();
      {
        Group group;
        check(zbcclSend(x.data(), kMost, zbcclFloat32, next, comm.get(), &how));
        check(zbcclRecv(y.data(), kMost, zbcclFloat32, before, comm.get(), &how));
        group.finish();
      }
      rank.stream().wait();
      check_cuda(cudaMemcpy(values.data(), y.data(), 4 * kMost, cudaMemcpyDeviceToHost),
                 "cudaMemcpy");
      size_t wrong = 0;
      for (size_t k = 0; k < kMost; ++k) wrong += values[k] != number(before, k) ? 1 : 0;
      EXPECT_EQ(0U, wrong);
      expect_right(rank, comm, all, "a message that differed");
      rank.settle();
    }
    comm.destroy();
    rank.settle();
  });
}

// One rank makes no call after the one that differed: the others' wait for it ends at the deadline.
TEST_P(Recovery, ARankThatIsNotTold) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 3), .place = GetParam()}, [](GpuRank& rank) {
    const CudaMemory x(80'000, DeviceMemoryKind::kPool, rank.device());
    Communicator comm = rank.connect(rank.config(milliseconds(1200)));
    rank.settle();
    call_differently(rank, comm, x, 1000);
    rank.stream().wait();
    EXPECT_EQ(zbcclInvalidUsage, wait_for_error(comm, kSoon));
    rank.settle();
    const int missing = rank.size() - 1;
    if (rank.rank() != missing) {
      call_until_told(rank, comm, x);
      rank.stream().wait();
      const zbcclResult_t state = wait_for_error(comm, kSoon);
      EXPECT_TRUE(state == zbcclTimeout || state == zbcclRemoteFailed)
          << zbcclGetErrorString(state);
      const zbcclCall_t how = rank.call();
      expect_error(state, zbcclBarrier(comm.get(), &how), {"rank " + std::to_string(missing)});
      expect_error(state, zbcclBarrier(comm.get(), &how));
    }
    rank.meet();
    if (rank.rank() == missing) {
      const zbcclCall_t how = rank.call();
      const auto end = steady_clock::now() + kSoon;
      zbcclResult_t got = zbcclSuccess;
      while ((got == zbcclSuccess || got == zbcclInvalidUsage) && steady_clock::now() < end) {
        got = zbcclBarrier(comm.get(), &how);
        rank.stream().wait();
      }
      EXPECT_EQ(zbcclRemoteFailed, got);
    }
    rank.settle();
    comm.destroy();
    rank.settle();
  });
}

// One that dies instead.
TEST(RecoveryKill, BeforeItIsTold) {
  ZBCCL_NEED_GPUS(Place::kGpuEach, 2);
  const int ranks = ranks_at(Place::kGpuEach, 3);
  const int victim = ranks - 1;
  run_gpu_job({.ranks = ranks, .killed = {victim}}, [&](GpuRank& rank) {
    const CudaMemory x(80'000, DeviceMemoryKind::kPool, rank.device());
    Communicator comm = rank.connect(rank.config(seconds(40)));
    rank.settle();
    call_differently(rank, comm, x, 1000);
    rank.stream().wait();
    EXPECT_EQ(zbcclInvalidUsage, wait_for_error(comm, kSoon));
    rank.settle();
    if (rank.rank() == victim) {
      std::this_thread::sleep_for(milliseconds(300));
      ::kill(::getpid(), SIGKILL);
    }
    const auto begin = steady_clock::now();
    call_until_told(rank, comm, x);
    rank.stream().wait();  // for what waits for the others
    EXPECT_EQ(zbcclRemoteFailed, wait_for_error(comm, kSoon));
    EXPECT_LT(steady_clock::now() - begin, 2 * kSoon);
    const zbcclCall_t how = rank.call();
    expect_error(zbcclRemoteFailed, zbcclBarrier(comm.get(), &how),
                 {"rank " + std::to_string(victim)});
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
