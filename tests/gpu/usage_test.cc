// Wrong use of device memory: refused with a message, or, where the ranks' calls differ, found on
// the device and reported on every rank before any output is written.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gpu/device_check.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

using std::chrono::seconds;

constexpr size_t kCount = 1000;
constexpr size_t kBytes = size_t{6} << 20;  // an all_reduce takes two kernels
constexpr int kPoison = 0xA5;

class Usage : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Usage, testing::Values(Place::kGpuEach, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

using Call = std::function<zbcclResult_t(const void* in, void* out, zbcclComm_t comm,
                                         const zbcclCall_t* call, bool odd)>;
struct Mismatch {
  const char* name;
  Call call;
};

std::vector<size_t> some_counts(zbcclComm_t comm, const std::function<int(int)>& count) {
  int ranks = 0;
  check(zbcclCommCount(comm, &ranks));
  std::vector<size_t> counts;
  for (int r = 0; r < ranks; ++r) counts.push_back(static_cast<size_t>(count(r)));
  return counts;
}

std::vector<Mismatch> mismatches() {
  return {
      {"count",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllReduce(in, out, odd ? kCount - 1 : kCount, zbcclFloat32, zbcclSum, comm,
                               call);
       }},
      {"count of a large call",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllReduce(in, out, kBytes / 4 - (odd ? 1 : 0), zbcclFloat32, zbcclSum, comm,
                               call);
       }},
      {"count zero",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllReduce(in, out, odd ? 0 : kCount, zbcclFloat32, zbcclSum, comm, call);
       }},
      {"type",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllReduce(in, out, kCount, odd ? zbcclInt32 : zbcclFloat32, zbcclSum, comm,
                               call);
       }},
      {"operator",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllReduce(in, out, kCount, zbcclBfloat16, odd ? zbcclMax : zbcclSum, comm,
                               call);
       }},
      {"operation",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return odd ? zbcclAllGather(in, out, 18, zbcclFloat32, comm, call)
                    : zbcclAllReduce(in, out, 18, zbcclFloat32, zbcclSum, comm, call);
       }},
      {"operation against barrier",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return odd ? zbcclBarrier(comm, call)
                    : zbcclAllReduce(in, out, kCount, zbcclFloat32, zbcclSum, comm, call);
       }},
      {"all_gather's count",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllGather(in, out, odd ? 17 : 18, zbcclFloat32, comm, call);
       }},
      {"root",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclBroadcast(in, out, kCount, zbcclFloat32, odd ? 1 : 0, comm, call);
       }},
      {"reduce_scatter's count",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclReduceScatter(in, out, odd ? 999 : 1000, zbcclBfloat16, zbcclSum, comm, call);
       }},
      {"all_to_all's count",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllToAll(in, out, odd ? 999 : 1000, zbcclFloat32, comm, call);
       }},
      {"numbers of kernels",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return odd ? zbcclAllGather(in, out, 50'000, zbcclFloat32, comm, call)
                    : zbcclAllReduce(in, out, kBytes / 4, zbcclFloat32, zbcclSum, comm, call);
       }},
      {"type, of the same size",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllReduce(odd ? out : in, out, kCount, odd ? zbcclInt8 : zbcclUint8, zbcclMax,
                               comm, call);
       }},
      {"all_gather_v's sizes",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         // The rank that differs has its own size right.
         const auto counts = some_counts(comm, [&](int r) { return odd && r == 0 ? 41 : 40; });
         return zbcclAllGatherV(in, out, counts.data(), nullptr, zbcclFloat32, comm, call);
       }},
      {"reduce_scatter_v's sizes",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const auto counts = some_counts(comm, [&](int r) { return odd && r == 0 ? 41 : 40; });
         return zbcclReduceScatterV(in, out, counts.data(), zbcclFloat32, zbcclSum, comm, call);
       }},
      {"one pair of an all_to_all_v",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const auto sends = some_counts(comm, [&](int r) { return odd && r == 0 ? 4001 : 4000; });
         const auto gets = some_counts(comm, [](int) { return 4000; });
         return zbcclAllToAllV(in, sends.data(), nullptr, out, gets.data(), nullptr, zbcclFloat32,
                               comm, call);
       }},
  };
}

// Calls of several algorithms, large and small, whose results must be right.
class Rounds {
 public:
  explicit Rounds(GpuRank& rank) : rank_(rank) {
    const CheckedCall::Shape shapes[] = {
        {Checked::kAllReduce, zbcclBfloat16, 5000},
        {Checked::kAllReduce, zbcclFloat32, 1'500'000, true},
        {Checked::kAllReduce, zbcclUint32, 20'011},
        {Checked::kAllGather, zbcclFloat32, 1234},
        {Checked::kReduceScatter, zbcclFloat32, 7777},
        {Checked::kAllToAll, zbcclFloat32, 301},
        {Checked::kBroadcast, zbcclBfloat16, 200'001},
    };
    uint32_t seed = 800;
    for (const CheckedCall::Shape& shape : shapes) {
      calls_.push_back(std::make_unique<CheckedCall>(rank, shape, seed++));
    }
  }
  void run(Communicator& comm, const std::string& after) {
    for (const auto& call : calls_) call->round(comm, rank_.stream());
    for (const auto& call : calls_) EXPECT_EQ(0U, call->wrong(rank_.stream())) << after;
  }

 private:
  GpuRank& rank_;
  std::vector<std::unique_ptr<CheckedCall>> calls_;
};

bool all_poison(const void* device, size_t bytes) {
  std::vector<std::byte> image(bytes);
  check_cuda(cudaMemcpy(image.data(), device, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
  return std::all_of(image.begin(), image.end(),
                     [](std::byte b) { return b == std::byte{kPoison}; });
}

// All on one communicator: each is reported once on every rank, and the calls after that work.
TEST_P(Usage, CallsThatDiffer) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 3), .place = GetParam()}, [](GpuRank& rank) {
    const CudaMemory in(kBytes, DeviceMemoryKind::kPool, rank.device());
    const CudaMemory out(kBytes, DeviceMemoryKind::kPool, rank.device());
    Rounds rounds(rank);
    Communicator comm = rank.connect();
    for (const Mismatch& mismatch : mismatches()) {
      rank.note(mismatch.name);
      rank.settle();
      check_cuda(cudaMemset(out.data(), kPoison, kBytes), "cudaMemset");
      check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
      rank.settle();
      const zbcclCall_t how = rank.call();
      const bool odd = rank.rank() == rank.size() - 1;
      check(mismatch.call(in.data(), out.data(), comm.get(), &how, odd));
      rank.stream().wait();
      EXPECT_EQ(zbcclInvalidUsage, wait_for_error(comm, seconds(5))) << mismatch.name;
      // The next call says who called what.
      expect_error(
          zbcclInvalidUsage,
          zbcclAllReduce(in.data(), out.data(), 8, zbcclFloat32, zbcclSum, comm.get(), &how),
          {"rank"});
      EXPECT_EQ(zbcclSuccess, comm.async_error()) << mismatch.name;
      rank.settle();
      EXPECT_TRUE(all_poison(out.data(), kBytes)) << mismatch.name << ": an output was written";
      rank.settle();
      rounds.run(comm, mismatch.name);
    }
    rank.settle();
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    comm.destroy();
    rank.settle();
  });
}

TEST_P(Usage, AWorkingCommunicatorAfterOneThatFailed) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = 2, .place = GetParam()}, [](GpuRank& rank) {
    const CudaMemory x(kBytes, DeviceMemoryKind::kPool, rank.device());
    rank.settle();
    for (int i = 0; i < 3; ++i) {
      Communicator failing = rank.connect();
      Communicator comm = rank.connect();
      rank.settle();
      const zbcclCall_t how = rank.call();
      check(zbcclAllReduce(x.data(), x.data(), rank.rank() == 0 ? 10 : 11, zbcclFloat32, zbcclSum,
                           failing.get(), &how));
      check(zbcclAllReduce(x.data(), x.data(), 1000, zbcclInt32, zbcclMax, comm.get(), &how));
      rank.stream().wait();
      EXPECT_EQ(zbcclInvalidUsage, wait_for_error(failing, seconds(5)));
      EXPECT_EQ(zbcclSuccess, comm.async_error());
      rank.settle();
      failing.destroy();
      comm.destroy();
      rank.settle();
    }
  });
}

TEST_P(Usage, BuffersOfTwoKinds) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = 2, .place = GetParam()}, [](GpuRank& rank) {
    const CudaMemory device(kBytes, DeviceMemoryKind::kPool, rank.device());
    Buffer<float> host(1000);
    Communicator comm = rank.connect();
    Communicator host_only = [&] {
      zbcclConfig_t config = rank.config();
      config.device = ZBCCL_DEVICE_NONE;
      return rank.connect(config);
    }();
    rank.settle();
    const zbcclCall_t how = rank.call();
    const auto reduce = [&](const void* in, void* out, Communicator& with) {
      return zbcclAllReduce(in, out, 1000, zbcclFloat32, zbcclSum, with.get(), &how);
    };
    expect_error(zbcclInvalidArgument, reduce(device.data(), host.data(), comm), {"host memory"});
    expect_error(zbcclInvalidArgument, reduce(host.data(), device.data(), comm), {"host memory"});
    expect_error(zbcclInvalidUsage, reduce(device.data(), device.data(), host_only), {"device"});
    int ordinal = 0;
    check(zbcclCommGetDevice(comm.get(), &ordinal));
    EXPECT_EQ(rank.device(), ordinal);
    check(zbcclCommGetDevice(host_only.get(), &ordinal));
    EXPECT_EQ(ZBCCL_DEVICE_NONE, ordinal);
    // Refused before any other rank heard of it: both still work, with host memory too.
    std::fill(host.begin(), host.end(), 1.0F);
    check(zbcclAllReduce(host.data(), host.data(), 1000, zbcclFloat32, zbcclSum, comm.get(),
                         nullptr));
    EXPECT_EQ(2.0F, host[999]);
    check(reduce(device.data(), device.data(), comm));
    rank.settle();
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    comm.destroy();
    host_only.destroy();
    rank.settle();
  });
}

TEST_P(Usage, MemoryThatIsNotTheirs) {
  ZBCCL_NEED_GPUS(GetParam(), 1);
  run_gpu_job({.ranks = 1, .place = GetParam()}, [](GpuRank& rank) {
    void* memory = nullptr;
    expect_error(zbcclInvalidArgument, zbcclMemAllocDevice(nullptr, 100, rank.device()));
    EXPECT_NE(zbcclSuccess, zbcclMemAllocDevice(&memory, 100, 1000));
    EXPECT_NE(zbcclSuccess, zbcclMemAllocDevice(&memory, size_t{1} << 50, rank.device()));
    std::vector<float> host(100);
    EXPECT_NE(zbcclSuccess, zbcclMemRegister(host.data(), 400));
    EXPECT_NE(zbcclSuccess, zbcclMemDeregister(host.data()));
    check(zbcclMemAllocDevice(&memory, 100, rank.device()));
    EXPECT_EQ(0U, reinterpret_cast<uintptr_t>(memory) % 512);
    EXPECT_NE(zbcclSuccess, zbcclMemFree(static_cast<std::byte*>(memory) + 512));
    check(zbcclMemFree(memory));
    const CudaMemory foreign(4096, DeviceMemoryKind::kPlain, rank.device());
    EXPECT_NE(zbcclSuccess, zbcclMemFree(foreign.data()));
    EXPECT_NE(zbcclSuccess, zbcclMemDeregister(foreign.data()));
    // Counted.
    check(zbcclMemRegister(foreign.data(), 4096));
    check(zbcclMemRegister(foreign.data(), 4096));
    check(zbcclMemDeregister(foreign.data()));
    check(zbcclMemDeregister(foreign.data()));
    EXPECT_NE(zbcclSuccess, zbcclMemDeregister(foreign.data()));
  });
}

TEST_P(Usage, ArgumentsAreCheckedOnTheDeviceToo) {
  ZBCCL_NEED_GPUS(GetParam(), 1);
  run_gpu_job({.ranks = 1, .place = GetParam()}, [](GpuRank& rank) {
    const CudaMemory x(kBytes, DeviceMemoryKind::kPool, rank.device());
    Communicator comm = rank.connect();
    zbcclCall_t how = rank.call();
    expect_error(zbcclInvalidArgument, zbcclAllReduce(x.data(), x.data() + 4, 100, zbcclFloat32,
                                                      zbcclSum, comm.get(), &how));
    expect_error(zbcclInvalidArgument,
                 zbcclAllReduce(x.data(), nullptr, 100, zbcclFloat32, zbcclSum, comm.get(), &how));
    expect_error(zbcclInvalidArgument,
                 zbcclBroadcast(x.data(), x.data(), 100, zbcclFloat32, 1, comm.get(), &how));
    how.max_blocks = -1;
    expect_error(zbcclInvalidArgument,
                 zbcclAllReduce(x.data(), x.data(), 100, zbcclFloat32, zbcclSum, comm.get(), &how));
    rank.settle();
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
