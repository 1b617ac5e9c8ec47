// GPUs that do not reach each other's memory, as it is on some machines with PCIe only: every call
// goes through host memory and gives the same bits, in the order of the streams, and what cannot be
// done is refused. The reach is denied; what machines without it do besides is not tested here.
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpu/device_check.h"
#include "gpu/gpu_case_runner.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr seconds kSoon{5};
const std::pair<std::string, std::string> kDenied = {"ZBCCL_DENY_REACH", "mapped"};

class Staged : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Staged,
                         testing::Values(Place::kGpuEach, Place::kThreads, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

void run_denied(Place place, int most, const std::function<void(GpuRank&, Communicator&)>& body) {
  run_gpu_job({.ranks = ranks_at(place, most), .place = place, .env = {kDenied}},
              [&](GpuRank& rank) {
                Communicator comm = rank.connect();
                rank.settle();
                body(rank, comm);
                rank.settle();
                comm.destroy();
                rank.settle();
              });
}

TEST_P(Staged, SameBits) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  for (const int most : {2, 3}) {
    run_denied(GetParam(), most, [](GpuRank& rank, Communicator& comm) {
      GpuCaseRunner runner(rank, size_t{12} << 20, 8);
      runner.check_staging(false);
      runner.use(comm);
      const zbcclCommStats_t before = comm.stats();
      runner.run_all(sample(small_cases(rank.size()), 31));
      runner.run_all(sample(large_cases(rank.size()), 3));
      EXPECT_STREQ("host_staged", comm.last_algorithm());
      EXPECT_GT(comm.stats().staged_bytes, before.staged_bytes);
      EXPECT_EQ(zbcclSuccess, comm.async_error());
    });
  }
}

// Many calls one behind the other without the host's waiting, on two streams.
TEST_P(Staged, InTheOrderOfTheStreams) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_denied(GetParam(), 3, [](GpuRank& rank, Communicator& comm) {
    const CudaStream second;
    CheckedCall reduce(rank, {Checked::kAllReduce, zbcclBfloat16, 70'001}, 1);
    CheckedCall gather(rank, {Checked::kAllGather, zbcclFloat32, 3000, true}, 2);
    CheckedCall exchange(rank, {Checked::kAllToAll, zbcclFloat32, 501}, 3);
    Buffer<float> host(1000);
    rank.settle();
    for (int i = 0; i < 30; ++i) {
      reduce.round(comm, rank.stream());
      gather.round(comm, second);
      exchange.round(comm, rank.stream());
      if (i % 10 != 0) continue;
      // Calls on host memory stand in the same queue.
      std::fill(host.begin(), host.end(), static_cast<float>(i + rank.rank()));
      check(zbcclAllReduce(host.data(), host.data(), host.size(), zbcclFloat32, zbcclMax,
                           comm.get(), nullptr));
      EXPECT_EQ(static_cast<float>(i + rank.size() - 1), host[999]);
    }
    for (const CheckedCall* call : {&reduce, &exchange}) {
      EXPECT_EQ(0U, call->wrong(rank.stream()));
    }
    EXPECT_EQ(0U, gather.wrong(second));
    rank.settle();
  });
}

// A call returns before its stream has come so far.
TEST_P(Staged, CallsDoNotWait) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_denied(GetParam(), 2, [](GpuRank& rank, Communicator& comm) {
    const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
    const Pinned released(sizeof(uint32_t));
    auto* const word = reinterpret_cast<volatile uint32_t*>(released.data());
    rank.settle();
    for (int i = 0; i < 3; ++i) {
      *word = 0;
      launch_hold(rank.stream().get(), const_cast<const uint32_t*>(word));
      zbcclWork_t handle = nullptr;
      zbcclCall_t how = rank.call();
      how.work = &handle;
      check(zbcclAllReduce(x.data(), x.data(), 1024, zbcclInt32, zbcclMax, comm.get(), &how));
      Work work(handle);
      EXPECT_FALSE(work.test());
      EXPECT_EQ(zbcclTimeout, zbcclWorkWait(handle, 20));
      *word = 1;
      work.wait();
      rank.settle();
    }
  });
}

// More messages than a kernel carries, of any size and alignment.
TEST_P(Staged, ManyMessagesInAGroup) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_denied(GetParam(), 3, [](GpuRank& rank, Communicator& comm) {
    constexpr size_t kMessages = 75;
    const auto bytes = [](size_t i) { return i * i * 97 + i; };
    size_t total = 0;
    for (size_t i = 0; i < kMessages; ++i) total += bytes(i);
    const CudaMemory from(total, DeviceMemoryKind::kPool, rank.device());
    const CudaMemory to(total, DeviceMemoryKind::kPool, rank.device());
    const Pinned image(total);
    const auto paint = [&](int sender) {
      fill(image.data(), total, zbcclUint8, Fill::kRandom, static_cast<uint64_t>(sender) + 77);
    };
    const auto copy = [&](void* there, const void* here) {
      check_cuda(cudaMemcpyAsync(there, here, total, cudaMemcpyDefault, rank.stream().get()),
                 "cudaMemcpyAsync");
    };
    paint(rank.rank());
    copy(from.data(), image.data());
    rank.settle();
    const zbcclCall_t how = rank.call();
    const int ranks = rank.size();
    Group group;
    for (size_t i = 0, at = 0; i < kMessages; at += bytes(i++)) {
      check(zbcclSend(from.data() + at, bytes(i), zbcclUint8, (rank.rank() + 1) % ranks, comm.get(),
                      &how));
      check(zbcclRecv(to.data() + at, bytes(i), zbcclUint8, (rank.rank() + ranks - 1) % ranks,
                      comm.get(), &how));
    }
    group.finish();
    copy(image.data(), to.data());
    rank.stream().wait();
    const std::vector<std::byte> got(image.data(), image.data() + total);
    paint((rank.rank() + ranks - 1) % ranks);
    EXPECT_EQ(0, std::memcmp(got.data(), image.data(), total));
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    rank.settle();
  });
}

TEST_P(Staged, GraphsAreRefused) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_denied(GetParam(), 2, [](GpuRank& rank, Communicator& comm) {
    CheckedCall call(rank, {Checked::kAllReduce, zbcclFloat32, 5000}, 5);
    const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
    rank.settle();
    {
      const CudaGraph graph(rank.stream(), [&] {
        const zbcclCall_t how = rank.call();
        expect_error(
            zbcclUnsupported,
            zbcclAllReduce(x.data(), x.data(), 16, zbcclFloat32, zbcclSum, comm.get(), &how),
            {"graph", "ZBCCL_DENY_REACH"});
      });
    }
    rank.settle();
    call.round(comm, rank.stream());
    EXPECT_EQ(0U, call.wrong(rank.stream()));
    rank.settle();
  });
}

TEST_P(Staged, CallsThatDiffer) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_denied(GetParam(), 3, [](GpuRank& rank, Communicator& comm) {
    CheckedCall call(rank, {Checked::kAllReduce, zbcclFloat32, 5000}, 6);
    const CudaMemory x(80'000, DeviceMemoryKind::kPool, rank.device());
    const CudaMemory y(80'000, DeviceMemoryKind::kPool, rank.device());
    std::vector<std::byte> image(80'000);
    for (int i = 0; i < 5; ++i) {
      rank.settle();
      check_cuda(cudaMemset(y.data(), 0xA5, 80'000), "cudaMemset");
      check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
      rank.settle();
      const zbcclCall_t how = rank.call();
      const size_t count = rank.rank() == 0 ? 999 : 1000;
      check(zbcclAllReduce(x.data(), y.data(), count, zbcclFloat32, zbcclSum, comm.get(), &how));
      // Ranks are told at different calls; those in between are left out.
      for (int j = 0; j < rank.rank() * i; ++j) {
        const zbcclResult_t got =
            zbcclAllReduce(x.data(), y.data(), 10, zbcclFloat32, zbcclSum, comm.get(), &how);
        if (got == zbcclSuccess) continue;
        EXPECT_EQ(zbcclInvalidUsage, got);
        break;
      }
      if (comm.async_error() == zbcclSuccess) (void)wait_for_error(comm, milliseconds(50));
      rank.stream().wait();
      const auto end = steady_clock::now() + kSoon;
      while (comm.async_error() != zbcclSuccess && steady_clock::now() < end) {
        expect_error(zbcclInvalidUsage, zbcclBarrier(comm.get(), &how), {"1000", "999"});
      }
      rank.settle();
      check_cuda(cudaMemcpy(image.data(), y.data(), image.size(), cudaMemcpyDeviceToHost),
                 "cudaMemcpy");
      for (const std::byte b : image) ASSERT_EQ(std::byte{0xA5}, b) << "an output was written";
      rank.settle();
      call.round(comm, rank.stream());
      EXPECT_EQ(0U, call.wrong(rank.stream()));
      EXPECT_EQ(zbcclSuccess, comm.async_error());
    }
  });
}

TEST_P(Staged, ARankThatDoesNotCome) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job(
      {.ranks = ranks_at(GetParam(), 3), .place = GetParam(), .env = {kDenied}}, [](GpuRank& rank) {
        const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
        Communicator comm = rank.connect(rank.config(milliseconds(1200)));
        rank.settle();
        const zbcclCall_t how = rank.call();
        const auto reduce = [&] {
          return zbcclAllReduce(x.data(), x.data(), 16, zbcclFloat32, zbcclSum, comm.get(), &how);
        };
        check(reduce());
        rank.settle();
        const int missing = rank.size() - 1;
        if (rank.rank() != missing) {
          check(reduce());
          rank.stream().wait();  // the gate opens, whatever has happened
          EXPECT_EQ(zbcclTimeout, wait_for_error(comm, kSoon));
          expect_error(zbcclTimeout, reduce(), {"rank " + std::to_string(missing)});
          expect_error(zbcclTimeout, reduce());
        }
        rank.meet();
        if (rank.rank() == missing) {
          EXPECT_EQ(zbcclRemoteFailed, reduce());
        }
        rank.settle();
        comm.destroy();
        rank.settle();
      });
}

TEST(StagedKill, WhileTheOthersWait) {
  ZBCCL_NEED_GPUS(Place::kGpuEach, 2);
  const int ranks = ranks_at(Place::kGpuEach, 3);
  const int victim = ranks - 1;
  run_gpu_job({.ranks = ranks, .env = {kDenied}, .killed = {victim}}, [&](GpuRank& rank) {
    const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
    Communicator comm = rank.connect(rank.config(seconds(40)));
    rank.settle();
    if (rank.rank() == victim) {
      std::this_thread::sleep_for(milliseconds(300));
      ::kill(::getpid(), SIGKILL);
    }
    const auto begin = steady_clock::now();
    const zbcclCall_t how = rank.call();
    check(zbcclAllReduce(x.data(), x.data(), 16, zbcclFloat32, zbcclSum, comm.get(), &how));
    rank.stream().wait();
    EXPECT_EQ(zbcclRemoteFailed, wait_for_error(comm, kSoon));
    EXPECT_LT(steady_clock::now() - begin, 2 * kSoon);
    expect_error(zbcclRemoteFailed, zbcclBarrier(comm.get(), &how),
                 {"rank " + std::to_string(victim)});
    comm.destroy();
  });
}

// One rank that reaches nobody is enough, and a part of the ranks that reach each other is served
// as ever.
TEST(StagedPartly, OneRankWithoutReach) {
  ZBCCL_NEED_GPUS(Place::kGpuEach, 2);
  run_gpu_job({.ranks = ranks_at(Place::kGpuEach, 3)}, [](GpuRank& rank) {
    const int alone = rank.size() - 1;
    if (rank.rank() == alone) ::setenv("ZBCCL_DENY_REACH", "mapped", 1);
    CheckedCall call(rank, {Checked::kAllReduce, zbcclBfloat16, 10'000}, 7);
    CheckedCall large(rank, {Checked::kAllGather, zbcclFloat32, 500'000}, 8);
    Communicator comm = rank.connect();
    rank.settle();
    call.round(comm, rank.stream());
    large.round(comm, rank.stream());
    EXPECT_EQ(0U, call.wrong(rank.stream()));
    EXPECT_EQ(0U, large.wrong(rank.stream()));
    EXPECT_STREQ("host_staged", comm.last_algorithm());
    const zbcclConfig_t config = rank.config();
    Communicator rest = comm.split(rank.rank() == alone ? 1 : 0, rank.rank(), &config);
    const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
    const zbcclCall_t how = rank.call();
    check(zbcclAllReduce(x.data(), x.data(), 16, zbcclFloat32, zbcclSum, rest.get(), &how));
    rank.stream().wait();
    EXPECT_STRNE("host_staged", rest.last_algorithm());
    EXPECT_EQ(zbcclSuccess, rest.async_error());
    rest.destroy();
    rank.settle();
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
