// Communicators on GPUs: split, several at once, sends and receives, handles, what is held, and
// memory that comes and goes between calls.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpu/device_check.h"

namespace zbccl::test {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
// What the library may hold on a device for one set of peers.
constexpr uint64_t kHeldLimit = 32 * kMiB;

class Communicators : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Communicators,
                         testing::Values(Place::kGpuEach, Place::kThreads, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

void run_at(Place place, int ranks, const std::function<void(GpuRank&, Communicator&)>& body) {
  run_with_communicator({.ranks = ranks, .place = place}, body);
}

// Two halves work at once, each on its own, beside the whole.
TEST_P(Communicators, Split) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), ranks_at(GetParam(), 4), [](GpuRank& rank, Communicator& comm) {
    const zbcclConfig_t config = rank.config();
    Communicator half = comm.split(rank.rank() % 2, -rank.rank(), &config);
    ASSERT_EQ((rank.size() + 1 - rank.rank() % 2) / 2, half.size());
    int device = ZBCCL_DEVICE_NONE;
    check(zbcclCommGetDevice(half.get(), &device));
    EXPECT_EQ(rank.device(), device);
    const CudaMemory x(4000, DeviceMemoryKind::kPool, rank.device());
    // Pinned, and kept: where ranks share a GPU, a copy of plain memory and giving memory back wait
    // for the kernels of the other ranks, which wait for this one.
    const Pinned memory(4000);
    auto* const values = reinterpret_cast<float*>(memory.data());
    const auto reduce = [&](Communicator& with) {
      std::fill_n(values, 1000, static_cast<float>(1 << rank.rank()));
      check_cuda(
          cudaMemcpyAsync(x.data(), values, 4000, cudaMemcpyHostToDevice, rank.stream().get()),
          "cudaMemcpyAsync");
      const zbcclCall_t how = rank.call();
      check(zbcclAllReduce(x.data(), x.data(), 1000, zbcclFloat32, zbcclSum, with.get(), &how));
      check_cuda(
          cudaMemcpyAsync(values, x.data(), 4000, cudaMemcpyDeviceToHost, rank.stream().get()),
          "cudaMemcpyAsync");
      rank.stream().wait();
      return values[999];
    };
    float sum_of_half = 0;
    for (int r = rank.rank() % 2; r < rank.size(); r += 2) {
      sum_of_half += static_cast<float>(1 << r);
    }
    rank.settle();
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(sum_of_half, reduce(half));
      EXPECT_EQ(static_cast<float>((1 << rank.size()) - 1), reduce(comm));
    }
    rank.settle();
    half.destroy();
  });
}

// The same ranks in another order, and one rank left out.
TEST_P(Communicators, OverlappingGroups) {
  ZBCCL_NEED_GPUS(GetParam(), 3);
  run_at(GetParam(), 3, [](GpuRank& rank, Communicator& comm) {
    const zbcclConfig_t config = rank.config();
    Communicator turned = comm.split(0, -rank.rank(), &config);
    Communicator pair = comm.split(rank.rank() == 1 ? -1 : 0, rank.rank(), &config);
    ASSERT_EQ(rank.rank() != 1, pair.valid());
    EXPECT_EQ(2 - rank.rank(), turned.rank());
    const CudaStream second;
    CheckedCall whole(rank, {Checked::kAllReduce, zbcclFloat32, 20'000}, 41);
    const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
    const CudaMemory all(3 * 4096, DeviceMemoryKind::kPool, rank.device());
    check_cuda(cudaMemset(x.data(), 16 + rank.rank(), 4096), "cudaMemset");
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    rank.settle();
    const zbcclCall_t how = GpuRank::call_on(second);
    for (int i = 0; i < 50; ++i) {
      whole.round(comm, rank.stream());
      check(zbcclAllGather(x.data(), all.data(), 4096, zbcclUint8, turned.get(), &how));
      if (pair.valid()) {
        check(zbcclBarrier(pair.get(), &how));
      }
    }
    EXPECT_EQ(0U, whole.wrong(rank.stream()));
    second.wait();
    std::vector<std::byte> image(3 * 4096);
    check_cuda(cudaMemcpy(image.data(), all.data(), image.size(), cudaMemcpyDeviceToHost),
               "cudaMemcpy");
    // By the ranks of the turned communicator.
    for (size_t r = 0; r < 3; ++r) EXPECT_EQ(std::byte(18 - r), image[r * 4096 + 4095]);
    rank.settle();
    if (pair.valid()) pair.destroy();
    turned.destroy();
  });
}

// Rings in both directions and messages of many sizes, in groups.
TEST_P(Communicators, SendsAndReceives) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), ranks_at(GetParam(), 4), [](GpuRank& rank, Communicator& comm) {
    constexpr size_t kCounts[] = {0, 1, 17, 4096, 100'003, 1'500'000};
    constexpr size_t kMost = 1'500'000;
    const CudaMemory in(kMost * 4, DeviceMemoryKind::kPool, rank.device());
    const CudaMemory right(kMost * 4, DeviceMemoryKind::kPlain, rank.device());
    const CudaMemory left(kMost * 4, DeviceMemoryKind::kRegistered, rank.device());
    const CudaMemory wrong(8, DeviceMemoryKind::kPlain, rank.device());
    check_cuda(cudaMemset(wrong.data(), 0, 8), "cudaMemset");
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    rank.settle();
    auto* const found = reinterpret_cast<unsigned long long*>(wrong.data());
    const int next = (rank.rank() + 1) % rank.size();
    const int before = (rank.rank() + rank.size() - 1) % rank.size();
    const zbcclCall_t how = rank.call();
    cudaStream_t stream = rank.stream().get();
    uint32_t step = 0;
    for (int round = 0; round < 20; ++round) {
      for (const size_t count : kCounts) {
        const Source source = {zbcclFloat32, 55, nullptr, ++step};
        launch_fill(stream, source, rank.rank(), 0, count, in.data());
        {
          Group group;
          check(zbcclSend(in.data(), count, zbcclFloat32, next, comm.get(), &how));
          check(zbcclRecv(left.data(), count, zbcclFloat32, before, comm.get(), &how));
          if (rank.size() > 2) {
            check(zbcclRecv(right.data(), count, zbcclFloat32, next, comm.get(), &how));
            check(zbcclSend(in.data(), count, zbcclFloat32, before, comm.get(), &how));
          }
          group.finish();
        }
        Expectation expectation;
        expectation.what = Expect::kRank;
        expectation.rank = before;
        launch_check(stream, source, expectation, count, left.data(), found);
        expectation.rank = next;
        if (rank.size() > 2) launch_check(stream, source, expectation, count, right.data(), found);
      }
    }
    unsigned long long total = 0;
    check_cuda(cudaMemcpyAsync(&total, found, 8, cudaMemcpyDeviceToHost, stream),
               "cudaMemcpyAsync");
    rank.stream().wait();
    EXPECT_EQ(0U, total);
    rank.settle();
  });
}

// One way only, without a group: the sender runs ahead, the receiver comes late.
TEST_P(Communicators, MessagesOneWay) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), 2, [](GpuRank& rank, Communicator& comm) {
    constexpr size_t kCount = 30'000;
    const CudaMemory x(kCount * 4, DeviceMemoryKind::kPool, rank.device());
    const CudaMemory wrong(8, DeviceMemoryKind::kPlain, rank.device());
    check_cuda(cudaMemset(wrong.data(), 0, 8), "cudaMemset");
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    rank.settle();
    const zbcclCall_t how = rank.call();
    cudaStream_t stream = rank.stream().get();
    auto* const found = reinterpret_cast<unsigned long long*>(wrong.data());
    for (uint32_t i = 0; i < 40; ++i) {
      const Source source = {zbcclFloat32, 66, nullptr, i};
      if (rank.rank() == 0) {
        launch_fill(stream, source, 0, 0, kCount, x.data());
        check(zbcclSend(x.data(), kCount, zbcclFloat32, 1, comm.get(), &how));
      } else {
        if (i % 10 == 0) launch_delay(stream, 2000);
        check(zbcclRecv(x.data(), kCount, zbcclFloat32, 0, comm.get(), &how));
        Expectation expectation;
        expectation.what = Expect::kRank;
        launch_check(stream, source, expectation, kCount, x.data(), found);
      }
    }
    unsigned long long total = 0;
    check_cuda(cudaMemcpyAsync(&total, found, 8, cudaMemcpyDeviceToHost, stream),
               "cudaMemcpyAsync");
    rank.stream().wait();
    EXPECT_EQ(0U, total);
    rank.settle();
  });
}

// A handle completes when the stream has come that far, and not before.
TEST_P(Communicators, Handles) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), 2, [](GpuRank& rank, Communicator& comm) {
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
      EXPECT_TRUE(work.test());
      rank.settle();
    }
  });
}

// The device that was current at each call of a group, whichever thread does the work.
TEST(CommunicatorsOfOneThread, HaveTheDeviceOfTheirCall) {
  ZBCCL_NEED_GPUS(Place::kThreads, 2);
  run_gpu_job({.ranks = 1}, [](GpuRank&) {
    zbcclUniqueId id;
    check(zbcclGetUniqueId(&id));
    zbcclComm_t comms[2] = {};
    {
      Group group;
      for (int r = 0; r < 2; ++r) {
        check_cuda(cudaSetDevice(1 - r), "cudaSetDevice");
        check_cuda(cudaFree(nullptr), "cudaFree");
        check(zbcclCommInitRank(&comms[r], 2, id, r, nullptr));
      }
      group.finish();
    }
    for (int r = 0; r < 2; ++r) {
      int device = ZBCCL_DEVICE_NONE;
      check(zbcclCommGetDevice(comms[r], &device));
      EXPECT_EQ(1 - r, device);
    }
    for (zbcclComm_t comm : comms) check(zbcclCommDestroy(comm));
  });
}

TEST_P(Communicators, HeldMemory) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  if (GetParam() != Place::kGpuEach) GTEST_SKIP() << "counts are of a process";
  run_gpu_job({.ranks = ranks_at(GetParam(), 4)}, [](GpuRank& rank) {
    const uint64_t before = memory_report().device_user_bytes;
    const CudaMemory user(3 * kMiB, DeviceMemoryKind::kPool, rank.device());
    EXPECT_GE(memory_report().device_user_bytes, before + 3 * kMiB);
    std::vector<Communicator> comms;
    for (int i = 0; i < 4; ++i) comms.push_back(rank.connect());
    for (Communicator& comm : comms) {
      for (const size_t count : {size_t{100}, size_t{100'000}, size_t{700'000}}) {
        const zbcclCall_t how = rank.call();
        check(zbcclAllReduce(user.data(), user.data(), count, zbcclFloat32, zbcclSum, comm.get(),
                             &how));
      }
    }
    rank.settle();
    EXPECT_LE(memory_report().device_held_bytes, kHeldLimit);
    std::fprintf(stderr, "rank %d: %llu bytes held for %zu communicators\n", rank.rank(),
                 static_cast<unsigned long long>(memory_report().device_held_bytes), comms.size());
    for (Communicator& comm : comms) comm.destroy();
    rank.settle();
  });
}

// Blocks that are made, used by a call and freed, of every kind and growing: each is shown to the
// peers anew, and what was freed is never reached.
TEST_P(Communicators, MemoryThatComesAndGoes) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), ranks_at(GetParam(), 4), [](GpuRank& rank, Communicator& comm) {
    uint32_t seed = 70;
    for (int i = 0; i < 45; ++i) {
      const auto operation = static_cast<Checked>(i % kNumChecked);
      const auto kind = static_cast<DeviceMemoryKind>(i % 3);
      const size_t count = size_t{1000} << (i % 10);
      rank.note("block " + std::to_string(i) + ", " + checked_name(operation));
      CheckedCall call(rank, {operation, zbcclFloat32, count, false, kind}, seed++);
      rank.settle();
      call.round(comm, rank.stream());
      call.round(comm, rank.stream());
      EXPECT_EQ(0U, call.wrong(rank.stream())) << "block " << i;
      rank.settle();
    }
  });
}

TEST_P(Communicators, MadeAndDestroyedAgainAndAgain) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 4), .place = GetParam()}, [](GpuRank& rank) {
    CheckedCall call(rank, {Checked::kAllReduce, zbcclBfloat16, 50'000}, 90);
    uint64_t held = 0;
    for (int i = 0; i < 12; ++i) {
      Communicator comm = rank.connect();
      rank.settle();
      call.round(comm, rank.stream());
      rank.settle();
      comm.destroy();
      rank.settle();
      // What the last one held is given back a moment after its peers have left it, too.
      const auto more = [&] { return memory_report().device_held_bytes > held + kMiB; };
      if (i == 0) std::this_thread::sleep_for(std::chrono::seconds(1));
      if (i == 0) held = memory_report().device_held_bytes;
      for (int looks = 0; more() && looks < 500; ++looks) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
      EXPECT_FALSE(more()) << "after communicator " << i;
      rank.settle();
    }
    EXPECT_EQ(0U, call.wrong(rank.stream()));
    rank.settle();
  });
}

}  // namespace
}  // namespace zbccl::test
