// Route, dispatch and combine in one CUDA graph, replayed with routings that change.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "gpu/moe_bed.h"

namespace zbccl::test {
namespace {

constexpr int kReplays = 1000;
constexpr uint16_t kPoison = 0x7B7B;

class MoeGraphs : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, MoeGraphs,
                         testing::Values(Place::kGpuEach, Place::kThreads, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

// A small integer as bf16, different for each row.
uint16_t element(int rank, int64_t token, int64_t at) {
  const auto value = static_cast<float>((rank * 37 + token * 5 + at) % 61 + 1);
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}
uint16_t times(uint16_t element, int factor) {
  uint32_t bits = static_cast<uint32_t>(element) << 16;
  float value = 0;
  std::memcpy(&value, &bits, sizeof bits);
  value *= static_cast<float>(factor);
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

// One rank's arrays and its graph: the rows that come are combined as they are.
class Cycle {
 public:
  Cycle(GpuRank& rank, Communicator& comm, const MoeCase& what)
      : rank_(rank),
        what_(what),
        first_(make_world(what, rank.size())),
        moe_(make_moe(comm, what, first_)),
        rows_(static_cast<int64_t>(reference_rows(first_, rank.rank()).rows.size())),
        tokens_(first_.tokens(rank.rank())),
        indices_(bytes(tokens_ * what.topk, 8), kind_, rank.device()),
        x_(bytes(tokens_ * what.hidden, 2), kind_, rank.device()),
        recv_x_(bytes(rows_ * what.hidden, 2), kind_, rank.device()),
        out_(bytes(tokens_ * what.hidden, 2), kind_, rank.device()),
        status_(3 * sizeof(int64_t), kind_, rank.device()) {
    std::vector<uint16_t> x;
    for (int64_t t = 0; t < tokens_; ++t) {
      for (int64_t h = 0; h < what.hidden; ++h) x.push_back(element(rank.rank(), t, h));
    }
    upload(x_, x.data(), x.size() * 2);
  }

  // Everything that a replay does.
  void enqueue() {
    const zbcclCall_t call = rank_.call();
    zbcclMoeRouting_t routing = moe_routing();
    routing.topk_idx = indices_.data();
    routing.num_tokens = tokens_;
    routing.num_topk = what_.topk;
    routing.layout = what_.layout;
    routing.capacity = what_.capacity;
    routing.with_dispatch = what_.with_dispatch ? 1 : 0;
    routing.recv_status = reinterpret_cast<int64_t*>(status_.data());
    handle_ = moe_.route(routing, &call);
    zbcclMoeDispatch_t there = moe_dispatch();
    there.hidden = what_.hidden;
    there.x = x_.data();
    there.recv_x = recv_x_.data();
    handle_.dispatch(there, &call);
    zbcclMoeCombine_t back = moe_combine();
    back.hidden = what_.hidden;
    back.y = recv_x_.data();
    back.out = out_.data();
    handle_.combine(back, &call);
  }

  MoeWorld prepare(uint64_t seed) {
    what_.seed = seed;
    const MoeWorld world = make_world(what_, rank_.size());
    const auto& indices = world.topk_idx[static_cast<size_t>(rank_.rank())];
    upload(indices_, indices.data(), indices.size() * 8);
    const std::vector<uint16_t> poison(static_cast<size_t>(rows_ * what_.hidden), kPoison);
    upload(recv_x_, poison.data(), poison.size() * 2);
    return world;
  }

  void check(const MoeWorld& world) {
    const MoeRows expected = reference_rows(world, rank_.rank());
    std::vector<int64_t> status(3);
    download(status_, status.data(), 24);
    EXPECT_EQ(expected.num_rows, status[0]);
    EXPECT_EQ(expected.needed_capacity, status[1]);
    EXPECT_EQ(expected.overflow ? 1 : 0, status[2]);
    std::vector<uint16_t> got(static_cast<size_t>(rows_ * what_.hidden));
    download(recv_x_, got.data(), got.size() * 2);
    std::vector<uint16_t> want;
    for (const MoeRow& row : expected.rows) {
      for (int64_t h = 0; h < what_.hidden; ++h) {
        want.push_back(row.token >= 0 ? element(row.source, row.token, h) : kPoison);
      }
    }
    EXPECT_TRUE(want == got) << "rows";
    std::vector<int> copies(static_cast<size_t>(tokens_), 0);
    for (int r = 0; r < world.ranks; ++r) {
      for (const MoeRow& row : reference_rows(world, r).rows) {
        if (row.source == rank_.rank()) ++copies[static_cast<size_t>(row.token)];
      }
    }
    got.resize(static_cast<size_t>(tokens_ * what_.hidden));
    download(out_, got.data(), got.size() * 2);
    want.clear();
    for (int64_t t = 0; t < tokens_; ++t) {
      for (int64_t h = 0; h < what_.hidden; ++h) {
        want.push_back(times(element(rank_.rank(), t, h), copies[static_cast<size_t>(t)]));
      }
    }
    EXPECT_TRUE(want == got) << "sums";
  }
  MoeHandle& handle() { return handle_; }

 private:
  static size_t bytes(int64_t count, size_t element) {
    return static_cast<size_t>(std::max<int64_t>(count, 1)) * element;
  }
  void upload(const CudaMemory& to, const void* from, size_t bytes) const {
    check_cuda(
        cudaMemcpyAsync(to.data(), from, bytes, cudaMemcpyHostToDevice, rank_.stream().get()),
        "cudaMemcpyAsync");
    rank_.stream().wait();
  }
  void download(const CudaMemory& from, void* to, size_t bytes) const {
    check_cuda(
        cudaMemcpyAsync(to, from.data(), bytes, cudaMemcpyDeviceToHost, rank_.stream().get()),
        "cudaMemcpyAsync");
    rank_.stream().wait();
  }

  static constexpr DeviceMemoryKind kind_ = DeviceMemoryKind::kPool;
  GpuRank& rank_;
  MoeCase what_;
  MoeWorld first_;
  Moe moe_;
  int64_t rows_;
  int64_t tokens_;
  CudaMemory indices_;
  CudaMemory x_;
  CudaMemory recv_x_;
  CudaMemory out_;
  CudaMemory status_;
  MoeHandle handle_;
};

void run_replays(Place place, const MoeCase& what) {
  run_gpu_job({.ranks = ranks_at(place, 4), .place = place}, [&](GpuRank& rank) {
    Communicator comm = rank.connect();
    rank.settle();
    {
      Cycle cycle(rank, comm, what);
      rank.settle();
      // Once by itself: memory that peers have not seen is shown then.
      MoeWorld world = cycle.prepare(1000);
      cycle.enqueue();
      cycle.check(world);
      rank.settle();
      const CudaGraph graph(rank.stream(), [&] { cycle.enqueue(); });
      rank.settle();
      for (uint64_t i = 0; i < kReplays && !testing::Test::HasFailure(); ++i) {
        world = cycle.prepare(i);
        graph.launch(rank.stream());
        cycle.check(world);
      }
      // What the last replay has left.
      expect_info(cycle.handle(), world, rank.rank());
      rank.settle();
    }
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    comm.destroy();
    rank.settle();
  });
}

MoeCase small_case() {
  MoeCase what;
  what.experts = 16;
  what.topk = 4;
  what.tokens = 60;
  what.hidden = 256;
  return what;
}

TEST_P(MoeGraphs, ReplaysMaskedRows) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  MoeCase what = small_case();
  what.layout = zbcclMoeExpertMasked;
  what.capacity = 58;  // which some experts exceed now and then
  run_replays(GetParam(), what);
}

TEST_P(MoeGraphs, ReplaysRowsThatAreRoutedOnTheirWay) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  MoeCase what = small_case();
  what.with_dispatch = true;
  what.layout = zbcclMoeExpertMasked;
  what.capacity = 58;
  run_replays(GetParam(), what);
}

TEST_P(MoeGraphs, ReplaysRowsByRank) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  MoeCase what = small_case();
  what.layout = zbcclMoeRankMajor;
  what.capacity = 165;
  run_replays(GetParam(), what);
}

TEST_P(MoeGraphs, ReplaysRowsByExpert) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  MoeCase what = small_case();
  what.layout = zbcclMoeExpertMajor;
  what.capacity = 230;
  run_replays(GetParam(), what);
}

}  // namespace
}  // namespace zbccl::test
