// What goes wrong around dispatch and combine on GPUs: wrong indices, memory and sizes, stale
// handles, ranks that do not come.
#include <gtest/gtest.h>

#include <csignal>

#include "gpu/moe_bed.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kSoon{5};

class MoeFault : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, MoeFault, testing::Values(Place::kGpuEach, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

// One rank's arrays for a few tokens of 128 bf16.
struct Arrays {
  static constexpr int64_t kTokens = 8;
  static constexpr int64_t kHidden = 128;
  static constexpr int kTopk = 2;

  explicit Arrays(GpuRank& rank)
      : indices(kTokens * kTopk * 8, DeviceMemoryKind::kPool, rank.device()),
        x((kTokens + 1) * kHidden * 2, DeviceMemoryKind::kPool, rank.device()),
        recv_x(rows(rank) * kHidden * 2, DeviceMemoryKind::kPool, rank.device()),
        out(kTokens * kHidden * 2, DeviceMemoryKind::kPool, rank.device()) {
    set_indices(rank, 0);
  }
  static size_t rows(const GpuRank& rank) {
    return static_cast<size_t>(kTokens * kTopk * rank.size());
  }
  // Slots 0 and 1 of each token; `wrong` in the last.
  void set_indices(GpuRank& rank, int64_t wrong) const {
    std::vector<int64_t> list;
    for (int64_t t = 0; t < kTokens; ++t) {
      list.push_back(t % 4);
      list.push_back((t + 1) % 4);
    }
    if (wrong != 0) list.back() = wrong;
    check_cuda(cudaMemcpyAsync(indices.data(), list.data(), list.size() * 8, cudaMemcpyHostToDevice,
                               rank.stream().get()),
               "cudaMemcpyAsync");
    rank.stream().wait();
  }
  zbcclMoeRouting_t routing(int layout = zbcclMoeExpertMajor) const {
    zbcclMoeRouting_t routing = moe_routing();
    routing.topk_idx = indices.data();
    routing.num_tokens = kTokens;
    routing.num_topk = kTopk;
    routing.layout = layout;
    return routing;
  }
  zbcclMoeDispatch_t there() const {
    zbcclMoeDispatch_t there = moe_dispatch();
    there.hidden = kHidden;
    there.x = x.data();
    there.recv_x = recv_x.data();
    return there;
  }
  zbcclMoeCombine_t back() const {
    zbcclMoeCombine_t back = moe_combine();
    back.hidden = kHidden;
    back.y = recv_x.data();
    back.out = out.data();
    return back;
  }

  CudaMemory indices;
  CudaMemory x;  // with a row more, so that it can begin later
  CudaMemory recv_x;
  CudaMemory out;
};

TEST_P(MoeFault, MistakesAreToldAndTheRestGoesOn) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 3), .place = GetParam()}, [](GpuRank& rank) {
    Communicator comm = rank.connect();
    const Arrays arrays(rank);
    Moe moe(comm, 4);
    const zbcclCall_t call = rank.call();
    rank.settle();
    MoeHandle handle = moe.route(arrays.routing(), &call);
    zbcclMoeDispatch_t wrong = arrays.there();
    std::vector<std::byte> host(4096);
    wrong.x = host.data();
    expect_error(zbcclInvalidArgument, zbcclMoeDispatch(handle.get(), &wrong, &call),
                 {"`x` is host memory", "CUDA device"});
    wrong = arrays.there();
    wrong.recv_rows = 1;
    if (handle.info().allocated_rows > 1) {
      expect_error(zbcclInvalidArgument, zbcclMoeDispatch(handle.get(), &wrong, &call), {"rows"});
    }
    wrong = arrays.there();
    wrong.x = arrays.x.data() + 2;
    expect_error(zbcclUnsupported, zbcclMoeDispatch(handle.get(), &wrong, &call), {"aligned"});
    // A handle of host memory does not take the device's.
    const std::vector<int64_t> none(2, -1);
    zbcclMoeRouting_t on_host = moe_routing(none.data(), 1, 2, zbcclMoeRankMajor);
    const MoeHandle host_handle = moe.route(on_host);
    const zbcclMoeDispatch_t there = arrays.there();
    expect_error(zbcclInvalidArgument, zbcclMoeDispatch(host_handle.get(), &there, nullptr),
                 {"CUDA device"});
    rank.settle();
    handle.dispatch(arrays.there(), &call);
    handle.combine(arrays.back(), &call);
    rank.settle();
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    moe = Moe();
    expect_error(zbcclInvalidUsage, zbcclMoeDispatch(handle.get(), &there, &call), {"stale"});
    rank.settle();
    comm.destroy();
    rank.settle();
  });
}

TEST_P(MoeFault, AnIndexThatIsNoExpert) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 3), .place = GetParam()}, [](GpuRank& rank) {
    Communicator comm = rank.connect();
    const Arrays arrays(rank);
    Moe moe(comm, 4);
    const zbcclCall_t call = rank.call();
    rank.settle();
    for (const int64_t index : {int64_t{4}, int64_t{-2}, int64_t{1} << 40}) {
      if (rank.rank() == 1) arrays.set_indices(rank, index);
      const MoeHandle exact = moe.route(arrays.routing(), &call);
      zbcclMoeInfo_t info = ZBCCL_MOE_INFO_INITIALIZER;
      expect_error(rank.rank() == 1 ? zbcclInvalidArgument : zbcclInvalidUsage,
                   zbcclMoeHandleGetInfo(exact.get(), &info), {"topk_idx of rank 1"});
      // With a capacity nothing moves.
      for (const int with_dispatch : {0, 1}) {
        zbcclMoeRouting_t routing = arrays.routing();
        routing.capacity = static_cast<int64_t>(Arrays::rows(rank));
        if (with_dispatch != 0) {
          routing.layout = zbcclMoeExpertMasked;
          routing.with_dispatch = 1;
          routing.capacity /= 4;  // of each expert
        }
        MoeHandle handle = moe.route(routing, &call);
        handle.dispatch(arrays.there(), &call);
        handle.combine(arrays.back(), &call);
        expect_error(rank.rank() == 1 ? zbcclInvalidArgument : zbcclInvalidUsage,
                     zbcclMoeHandleGetInfo(handle.get(), &info), {"topk_idx of rank 1"});
      }
      rank.settle();
    }
    arrays.set_indices(rank, 0);
    MoeHandle handle = moe.route(arrays.routing(), &call);
    handle.dispatch(arrays.there(), &call);
    rank.settle();
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    handle = MoeHandle();
    moe = Moe();
    comm.destroy();
    rank.settle();
  });
}

// The last rank leaves out one of route, dispatch and combine, or a dispatch that routes.
TEST_P(MoeFault, ARankThatDoesNotCome) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 3), .place = GetParam()}, [](GpuRank& rank) {
    const Arrays arrays(rank);
    constexpr const char* kNames[] = {"moe_route", "moe_dispatch", "moe_combine"};
    for (const int left_out : {0, 1, 2, -1}) {
      const bool joint = left_out < 0;
      Communicator comm = rank.connect(rank.config(milliseconds(1200)));
      Moe moe(comm, 4);
      const zbcclCall_t call = rank.call();
      rank.settle();
      const int missing = rank.size() - 1;
      const bool here = rank.rank() != missing;
      MoeHandle handle;
      zbcclMoeRouting_t routing = arrays.routing();
      routing.capacity = static_cast<int64_t>(Arrays::rows(rank));
      zbcclMoeRouting_t first = routing;
      if (joint) {
        first.layout = zbcclMoeExpertMasked;
        first.with_dispatch = 1;
        first.capacity /= 4;
      }
      const int last = joint ? 1 : left_out;
      for (int step = 0; step <= last; ++step) {
        if (step == last && !here) break;
        if (step == 0) handle = moe.route(first, &call);
        if (step == 1) handle.dispatch(arrays.there(), &call);
        if (step == 2) handle.combine(arrays.back(), &call);
      }
      if (here) {
        rank.stream().wait();
        EXPECT_EQ(zbcclTimeout, wait_for_error(comm, kSoon));
        zbcclMoeHandle_t next = nullptr;
        expect_error(zbcclTimeout, zbcclMoeRoute(moe.get(), &routing, &next, &call),
                     {"rank " + std::to_string(missing), kNames[last]});
      }
      rank.settle();
      handle = MoeHandle();
      moe = Moe();
      comm.destroy();
      rank.settle();
    }
  });
}

TEST(MoeFaultOfProcesses, ARankThatDies) {
  ZBCCL_NEED_GPUS(Place::kGpuEach, 2);
  const int ranks = ranks_at(Place::kGpuEach, 3);
  GpuJob job{.ranks = ranks};
  job.killed = {ranks - 1};
  run_gpu_job(job, [](GpuRank& rank) {
    Communicator comm = rank.connect();
    const Arrays arrays(rank);
    Moe moe(comm, 4);
    const zbcclCall_t call = rank.call();
    MoeHandle handle = moe.route(arrays.routing(), &call);
    handle.dispatch(arrays.there(), &call);
    rank.settle();
    if (rank.rank() == rank.size() - 1) (void)::raise(SIGKILL);
    const zbcclMoeCombine_t back = arrays.back();
    const auto begin = std::chrono::steady_clock::now();
    (void)zbcclMoeCombine(handle.get(), &back, &call);
    rank.stream().wait();
    EXPECT_EQ(zbcclRemoteFailed, wait_for_error(comm, kSoon));
    EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(15));
  });
}

}  // namespace
}  // namespace zbccl::test
