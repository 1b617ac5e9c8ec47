// Dispatch and combine, bit by bit: layouts x types x quantization x routings, on processes and
// threads, with registered and foreign memory.
#include <gtest/gtest.h>

#include "multirank/case_loop.h"
#include "multirank/moe_case.h"
#include "support/connect.h"

namespace zbccl::test {
namespace {

constexpr int kLayouts[] = {zbcclMoeRankMajor, zbcclMoeExpertMajor, zbcclMoeExpertMasked};

// A case for each layout: masked ones have room for all that can come.
std::vector<MoeCase> in_every_layout(MoeCase what, int ranks) {
  std::vector<MoeCase> cases;
  for (const int layout : kLayouts) {
    MoeCase one = what;
    one.layout = layout;
    if (layout == zbcclMoeExpertMajor) one.alignment = 4;
    if (layout == zbcclMoeExpertMasked) {
      one.capacity = (what.tokens + 5) * ranks * what.topk;
      one.zero_padding = true;
    }
    cases.push_back(one);
  }
  return cases;
}

void run_all(const JobOptions& options, const std::vector<MoeCase>& cases) {
  run_cases(
      options, cases, [](const MoeCase& one) { return one.describe(); },
      [](Rank& /*rank*/, Communicator& comm, const MoeCase& one, uint64_t /*number*/) {
        run_moe(comm, one);
      });
}

// Ranks are threads, where nothing but the routing matters.
void run_everywhere(int ranks, const MoeCase& what) {
  run_all({.ranks = ranks, .mode = Mode::kThreads}, in_every_layout(what, ranks));
}

TEST(Moe, MovesRowsOfEveryType) {
  std::vector<MoeCase> cases;
  for (const int type : {zbcclBfloat16, zbcclFloat16, zbcclFloat32, zbcclFloat8e4m3, zbcclInt8}) {
    MoeCase what;
    what.type = type;
    what.hidden = type == zbcclFloat32 ? 132 : 144;
    what.combine_type = type == zbcclFloat16 || type == zbcclFloat32 ? type : zbcclBfloat16;
    what.biases = type % 3;
    if (type == zbcclFloat8e4m3 || type == zbcclInt8) what.scales = 3;
    for (MoeCase one : in_every_layout(what, 3)) cases.push_back(one);
  }
  run_all({.ranks = 3, .mode = Mode::kProcesses}, cases);
}

TEST(Moe, QuantizesOnTheWay) {
  std::vector<MoeCase> cases;
  for (const int quant :
       {zbcclMoeQuantFp8, zbcclMoeQuantFp8Pow2, zbcclMoeQuantFp8Ue8m0, zbcclMoeQuantInt8}) {
    for (const int type : {zbcclBfloat16, zbcclFloat16, zbcclFloat32}) {
      MoeCase what;
      what.quant = quant;
      what.type = type;
      what.hidden = type == zbcclFloat16 ? 640 : 280;  // whole groups, and a short one
      what.tokens = 5;
      what.transposed = type != zbcclFloat32;
      what.special = type == zbcclFloat32;
      what.strided = type == zbcclFloat16;
      what.seed = static_cast<uint64_t>(quant);
      for (MoeCase one : in_every_layout(what, 2)) cases.push_back(one);
    }
  }
  run_all({.ranks = 2, .mode = Mode::kProcesses}, cases);
}

TEST(Moe, ReachesForeignMemory) {
  std::vector<MoeCase> cases;
  for (const int quant : {zbcclMoeQuantNone, zbcclMoeQuantFp8}) {
    MoeCase what;
    what.foreign = true;
    what.quant = quant;
    what.strided = true;
    what.tokens = 40;
    what.hidden = 1024;
    if (quant == zbcclMoeQuantNone) what.scales = 2;
    what.transposed = true;
    for (MoeCase one : in_every_layout(what, 3)) cases.push_back(one);
  }
  run_all({.ranks = 3, .mode = Mode::kMixed}, cases);
}

TEST(Moe, StagesForeignMemoryWhereItMust) {
  MoeCase what;
  what.foreign = true;
  what.tokens = 12;
  run_all({.ranks = 2, .env = {{"ZBCCL_CMA", "0"}}}, in_every_layout(what, 2));
}

TEST(Moe, TakesAnyRouting) {
  for (const Routed routed : {Routed::kOneExpert, Routed::kEmptyRank, Routed::kDuplicates,
                              Routed::kNone, Routed::kSkewed}) {
    MoeCase what;
    what.routed = routed;
    what.idx_type = zbcclInt32;
    run_everywhere(4, what);
  }
}

TEST(Moe, TakesRanksWithoutTokensOrExperts) {
  MoeCase what;
  what.mapped = true;
  what.idle_rank = true;
  what.experts = 7;
  run_everywhere(4, what);
  what.no_tokens = true;
  run_everywhere(3, what);
}

TEST(Moe, TakesExpertsThatDoNotDivide) {
  MoeCase what;
  what.experts = 11;
  what.topk = 5;
  run_everywhere(4, what);
}

TEST(Moe, TakesTheLargestTopk) {
  MoeCase what;
  what.experts = 64;
  what.topk = 32;
  what.tokens = 4;
  run_everywhere(3, what);
}

TEST(Moe, TakesOneRank) {
  MoeCase what;
  what.biases = 1;
  what.quant = zbcclMoeQuantInt8;
  run_everywhere(1, what);
}

TEST(Moe, TakesMoreRanksThanSlots) {
  MoeCase what;
  what.experts = 16;
  what.tokens = 3;
  what.topk = 2;
  run_everywhere(8, what);
}

TEST(Moe, AddsUpInEveryForm) {
  std::vector<MoeCase> cases;
  for (const int type : {zbcclBfloat16, zbcclFloat16, zbcclFloat32}) {
    for (int form = 0; form < 6; ++form) {
      MoeCase what;
      what.combine_type = type;
      what.type = type;
      what.hidden = form == 5 ? 8 : 264;  // less than a vector, and a rest
      what.pre_reduce = form % 2 == 1;
      what.weighted = form % 3 != 0;
      what.biases = form % 3;
      what.special = form == 4;
      what.topk = 6;
      what.tokens = 6;
      what.strided = form == 2;
      what.seed = static_cast<uint64_t>(form);
      for (MoeCase one : in_every_layout(what, 3)) cases.push_back(one);
    }
  }
  run_all({.ranks = 3, .mode = Mode::kThreads}, cases);
}

TEST(Moe, SendsNowAndReceivesLater) {
  MoeCase what;
  what.phases = true;
  std::vector<MoeCase> cases = in_every_layout(what, 2);
  run_all({.ranks = 2, .mode = Mode::kProcesses}, cases);
}

TEST(Moe, LeavesOutWhatDoesNotFit) {
  std::vector<MoeCase> cases;
  for (const int layout : kLayouts) {
    for (const int64_t capacity : {1, 4, 13, 1000}) {
      for (const bool zero : {false, true}) {
        MoeCase what;
        what.layout = layout;
        what.capacity = capacity;
        what.zero_padding = zero;
        what.routed = zero ? Routed::kSkewed : Routed::kRandom;
        what.quant = zero ? zbcclMoeQuantFp8Pow2 : zbcclMoeQuantNone;
        what.alignment = layout == zbcclMoeExpertMajor ? 8 : 1;
        what.biases = 1;
        cases.push_back(what);
      }
    }
  }
  run_all({.ranks = 3, .mode = Mode::kThreads}, cases);
}

TEST(Moe, RoutesWithTheDispatch) {
  std::vector<MoeCase> cases;
  for (const int layout : kLayouts) {
    for (const int64_t capacity : {2, 90}) {
      for (const bool phases : {false, true}) {
        MoeCase what;
        what.with_dispatch = true;
        what.layout = layout;
        what.capacity = capacity;
        what.phases = phases;
        what.quant = phases ? zbcclMoeQuantFp8 : zbcclMoeQuantNone;
        cases.push_back(what);
      }
    }
  }
  run_all({.ranks = 3, .mode = Mode::kThreads}, cases);
}

// With one handle again and again, and many handles at once.
TEST(Moe, KeepsHandles) {
  run_job({.ranks = 3, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    MoeCase what;
    const MoeWorld world = make_world(what, comm.size());
    Moe moe = make_moe(comm, what, world);
    MoeArray indices;
    MoeHandle first = route(moe, what, world, comm.rank(), indices);
    MoeCase other = what;
    other.layout = zbcclMoeExpertMajor;
    other.seed = 5;
    const MoeWorld other_world = make_world(other, comm.size());
    MoeHandle second = route(moe, other, other_world, comm.rank(), indices);
    EXPECT_EQ(2U, moe.report().handles);
    for (int i = 0; i < 3; ++i) {
      run_dispatch(first, what, world, comm.rank());
      run_dispatch(second, other, other_world, comm.rank());
      run_combine(first, what, world, comm.rank());
      run_dispatch(first, what, world, comm.rank());
      run_combine(second, other, other_world, comm.rank());
    }
    EXPECT_EQ(2U, moe.report().routes);
    EXPECT_EQ(9U, moe.report().dispatches);
    EXPECT_EQ(6U, moe.report().combines);
    comm.destroy();
  });
}

TEST(Moe, FollowsTwoHundredRoutings) {
  run_job({.ranks = 2, .mode = Mode::kProcesses}, [](Rank& rank) {
    Communicator comm = connect(rank);
    MoeCase what;
    what.hidden = 16;
    what.tokens = 6;
    const MoeWorld first = make_world(what, comm.size());
    Moe moe = make_moe(comm, what, first);
    MoeArray indices;
    for (int i = 0; i < 200 && !testing::Test::HasFailure(); ++i) {
      what.seed = static_cast<uint64_t>(i);
      what.layout = kLayouts[i % 3];
      what.capacity = what.layout == zbcclMoeExpertMasked ? 7 + i % 9 : 0;
      what.routed = i % 5 == 0 ? Routed::kSkewed : Routed::kRandom;
      const MoeWorld world = make_world(what, comm.size());
      MoeHandle handle = route(moe, what, world, comm.rank(), indices);
      run_dispatch(handle, what, world, comm.rank());
      run_combine(handle, what, world, comm.rank());
    }
    EXPECT_EQ(0U, moe.report().handles);
    EXPECT_EQ(0U, moe.report().staged_bytes);
    comm.destroy();
  });
}

TEST(Moe, UsesLittleMemoryOfItsOwn) {
  run_job({.ranks = 8, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    for (const int layout : {zbcclMoeRankMajor, zbcclMoeExpertMajor}) {
      MoeCase what;
      what.experts = 256;
      what.topk = 8;
      what.tokens = 4096;
      what.layout = layout;
      const MoeWorld world = make_world(what, comm.size());
      Moe moe = make_moe(comm, what, world);
      MoeArray indices;
      const MoeHandle handle = route(moe, what, world, comm.rank(), indices);
      EXPECT_LT(moe.report().metadata_bytes, 1U << 20);
      EXPECT_LT(moe.report().held_bytes, 2U << 20);
    }
    comm.destroy();
  });
}

TEST(Moe, RunsAsynchronously) {
  run_job({.ranks = 3, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    MoeCase what;
    const MoeWorld world = make_world(what, comm.size());
    Moe moe = make_moe(comm, what, world);
    const auto& mine = world.topk_idx[static_cast<size_t>(comm.rank())];
    zbcclMoeRouting_t routing =
        moe_routing(mine.data(), world.tokens(comm.rank()), what.topk, zbcclMoeExpertMajor);
    zbcclWork_t raw = nullptr;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.work = &raw;
    zbcclMoeHandle_t handle = nullptr;
    check(zbcclMoeRoute(moe.get(), &routing, &handle, &call));
    MoeHandle routed(handle);
    Work(raw).wait();
    const int64_t rows = routed.info().allocated_rows;
    constexpr int64_t kHidden = 64;
    const Buffer<float> x(static_cast<size_t>(world.tokens(comm.rank()) * kHidden));
    const Buffer<float> recv(static_cast<size_t>(rows * kHidden));
    const Buffer<float> out(x.size());
    std::fill(x.begin(), x.end(), 1.0F + static_cast<float>(comm.rank()));
    zbcclMoeDispatch_t dispatch = moe_dispatch();
    dispatch.type = zbcclFloat32;
    dispatch.hidden = kHidden;
    dispatch.x = x.data();
    dispatch.recv_x = recv.data();
    zbcclMoeCombine_t combine = moe_combine();
    combine.type = zbcclFloat32;
    combine.hidden = kHidden;
    combine.y = recv.data();
    combine.out = out.data();
    Work sent = routed.dispatch_async(dispatch);
    Work back = routed.combine_async(combine);
    back.wait();
    sent.wait();
    for (int64_t t = 0; t < world.tokens(comm.rank()); ++t) {
      int slots = 0;
      for (int k = 0; k < what.topk; ++k) slots += world.expert_of(comm.rank(), t, k) >= 0 ? 1 : 0;
      const float want = static_cast<float>(slots) * (1.0F + static_cast<float>(comm.rank()));
      EXPECT_EQ(want, out[static_cast<size_t>(t * kHidden + t % kHidden)]);
    }
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
