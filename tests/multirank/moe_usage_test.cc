// Wrong arguments and calls that differ: every rank gets an error that names what and who, no
// output is written, and everything works on. Handles that are stale.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "multirank/moe_case.h"
#include "support/connect.h"
#include "support/expect_error.h"
#include "support/guarded.h"

namespace zbccl::test {
namespace {

constexpr int kOdd = 1;  // the rank that is wrong
constexpr int64_t kHidden = 64;
constexpr int64_t kTokens = 6;
constexpr int kTopk = 2;
constexpr int kExperts = 4;

// A routing, and the memory of calls with it, all right as it stands.
struct Stage {
  explicit Stage(Communicator& c, zbcclMoeLayout_t layout = zbcclMoeExpertMajor)
      : comm(c), moe(c, kExperts) {
    for (int64_t i = 0; i < kTokens * kTopk; ++i) topk_idx.push_back(i % kExperts);
    routing = moe_routing(topk_idx.data(), kTokens, kTopk, layout);
    handle = moe.route(routing);
    const auto rows = static_cast<size_t>(handle.info().allocated_rows);
    recv_x = registered(rows * kHidden * sizeof(float));
    recv_scales = registered(rows * sizeof(float));
    out = registered(kTokens * kHidden * sizeof(float));
    dispatch = moe_dispatch();
    dispatch.type = zbcclFloat32;
    dispatch.hidden = kHidden;
    dispatch.x = x.data();
    dispatch.recv_x = recv_x.data();
    combine = moe_combine();
    combine.type = zbcclFloat32;
    combine.hidden = kHidden;
    combine.y = y.data();
    combine.out = out.data();
  }
  void expect_untouched() {
    EXPECT_TRUE(recv_x.poisoned());
    EXPECT_TRUE(recv_scales.poisoned());
    EXPECT_TRUE(out.poisoned());
  }
  // The same calls without a fault.
  void expect_works() {
    handle.dispatch(dispatch);
    handle.combine(combine);
    MoeHandle again = moe.route(routing);
    EXPECT_EQ(handle.info().num_rows, again.info().num_rows);
  }

  Communicator& comm;
  Moe moe;
  std::vector<int64_t> topk_idx;
  zbcclMoeRouting_t routing{};
  MoeHandle handle;
  Buffer<float> x{kTokens * kHidden};
  Buffer<float> y{4 * kTokens * kTopk * kHidden};
  Buffer<float> weights{kTokens * kTopk};
  Guarded recv_x = registered(0);
  Guarded recv_scales = registered(0);
  Guarded out = registered(0);
  zbcclMoeDispatch_t dispatch{};
  zbcclMoeCombine_t combine{};
};

// What one rank does wrong; `where` of the ranks that hear of it say `words`.
template <typename Args>
struct Fault {
  std::function<void(Args& args, Stage& stage)> spoil;
  std::vector<std::string> words;
  bool differs = false;  // from the others, and wrong by that alone
};

template <typename Args>
void expect_faults(const std::vector<Fault<Args>>& faults, Args Stage::*args,
                   zbcclResult_t (*call)(Stage& stage, const Args& args)) {
  run_job({.ranks = 3, .mode = Mode::kThreads}, [&](Rank& rank) {
    Communicator comm = connect(rank);
    Stage stage(comm);
    for (const Fault<Args>& fault : faults) {
      SCOPED_TRACE(fault.words.empty() ? "" : fault.words[0]);
      Args mine = stage.*args;
      if (comm.rank() == kOdd) fault.spoil(mine, stage);
      const zbcclResult_t got = call(stage, mine);
      const bool own = comm.rank() == kOdd && !fault.differs;
      expect_error(own ? zbcclInvalidArgument : zbcclInvalidUsage, got, fault.words);
      if (!own) expect_error(zbcclInvalidUsage, got, {"rank 1"});
      stage.expect_untouched();
    }
    stage.expect_works();
    comm.destroy();
  });
}

TEST(MoeUsage, RouteTellsWhatIsWrong) {
  using F = Fault<zbcclMoeRouting_t>;
  expect_faults<zbcclMoeRouting_t>(
      {F{[](auto& a, auto&) { a.num_topk = 0; }, {"num_topk is 0", "1 to 32"}},
       F{[](auto& a, auto&) { a.num_topk = 33; }, {"num_topk is 33"}},
       F{[](auto& a, auto&) { a.num_tokens = -1; }, {"num_tokens is -1"}},
       F{[](auto& a, auto&) { a.topk_idx = nullptr; }, {"`topk_idx` is a null pointer"}},
       F{[](auto& a, auto&) { a.idx_type = zbcclFloat32; }, {"idx_type is 0"}},
       F{[](auto& a, auto&) { a.layout = 3; }, {"3 is not a zbcclMoeLayout_t"}},
       F{[](auto& a, auto&) { a.alignment = 0; }, {"alignment is 0"}},
       F{[](auto& a, auto&) { a.capacity = -2; }, {"capacity is -2"}},
       F{[](auto& a, auto&) { a.layout = zbcclMoeExpertMasked; }, {"capacity is 0"}},
       F{[](auto& a, auto&) { a.size = 8; }, {"zbcclMoeRouting_t.size is 8"}},
       F{[](auto& a, auto&) {
           static const int64_t wrong[kTokens * kTopk] = {0, 1, 2, 3, 0, 1, 2, kExperts};
           a.topk_idx = wrong;
         },
         {"topk_idx[3, 1] is 4", "there are 4"}},
       F{[](auto& a, auto&) {
           static const int64_t wrong[kTokens * kTopk] = {-2};
           a.topk_idx = wrong;
         },
         {"topk_idx[0, 0] is -2"}},
       F{[](auto& a, auto&) { a.num_topk = 1; }, {"num_topk is 2 on rank 0 and 1 on rank 1"}, true},
       F{[](auto& a, auto&) { a.layout = zbcclMoeRankMajor; },
         {"layout is 1 on rank 0 and 0 on rank 1"},
         true},
       F{[](auto& a, auto&) { a.alignment = 16; }, {"alignment is 1 on rank 0"}, true},
       F{[](auto& a, auto&) { a.idx_type = zbcclInt32; }, {"idx_type is 10 on rank 0"}, true}},
      &Stage::routing, [](Stage& stage, const zbcclMoeRouting_t& args) {
        zbcclMoeHandle_t handle = nullptr;
        return zbcclMoeRoute(stage.moe.get(), &args, &handle, nullptr);
      });
}

TEST(MoeUsage, DispatchTellsWhatIsWrong) {
  using F = Fault<zbcclMoeDispatch_t>;
  expect_faults<zbcclMoeDispatch_t>(
      {F{[](auto& a, auto&) { a.x = nullptr; }, {"`x` is a null pointer"}},
       F{[](auto& a, auto&) { a.recv_x = nullptr; }, {"`recv_x` is a null pointer"}},
       F{[](auto& a, auto&) { a.type = 99; }, {"99 is not an element type"}},
       F{[](auto& a, auto&) { a.quant = 9; }, {"9 is not a zbcclMoeQuant_t"}},
       F{[](auto& a, auto&) { a.quant = zbcclMoeQuantFp8; }, {"`recv_scales` is a null pointer"}},
       F{[](auto& a, auto&) {
           a.quant = zbcclMoeQuantFp8;
           a.type = zbcclInt32;
         },
         {"rows of i32 cannot be quantized"}},
       F{[](auto& a, auto&) { a.hidden = 0; }, {"hidden is 0"}},
       F{[](auto& a, auto&) { a.hidden = 62; }, {"248 bytes", "multiple of 16"}},
       F{[](auto& a, auto&) { a.x_stride = 63; }, {"stride of 63"}},
       F{[](auto& a, auto&) { a.recv_rows = 1; }, {"hold 1 rows"}},
       F{[](auto& a, auto& s) { a.recv_x = s.x.data(); }, {"`x` and `recv_x` overlap"}},
       F{[](auto& a, auto&) {
           a.recv_src_idx = reinterpret_cast<int32_t*>(reinterpret_cast<char*>(a.recv_x) + 2);
         },
         {"`recv_src_idx`", "not aligned to its elements of 4 bytes"}},
       F{[](auto& a, auto&) { a.num_scales = 4; }, {"`x_scales` is a null pointer"}},
       F{[](auto& a, auto& s) { a.recv_topk_weights = s.weights.data(); }, {"zbcclMoeRankMajor"}},
       F{[](auto& a, auto&) { a.phase = 3; }, {"3 is not a zbcclMoePhase_t"}},
       F{[](auto& a, auto&) { a.size = 1; }, {"zbcclMoeDispatch_t.size is 1"}},
       F{[](auto& a, auto&) { a.hidden = 32; }, {"hidden is 64 on rank 0 and 32 on rank 1"}, true},
       F{[](auto& a, auto&) { a.type = zbcclInt32; }, {"type is 0 on rank 0"}, true},
       F{[](auto& a, auto& s) { a.recv_row_weights = s.weights.data(); },
         {"rank 1 wants the weights", "gives no topk_weights"},
         true}},
      &Stage::dispatch, [](Stage& stage, const zbcclMoeDispatch_t& args) {
        return zbcclMoeDispatch(stage.handle.get(), &args, nullptr);
      });
}

TEST(MoeUsage, CombineTellsWhatIsWrong) {
  using F = Fault<zbcclMoeCombine_t>;
  expect_faults<zbcclMoeCombine_t>(
      {F{[](auto& a, auto&) { a.y = nullptr; }, {"`y` is a null pointer"}},
       F{[](auto& a, auto&) { a.out = nullptr; }, {"`out` is a null pointer"}},
       F{[](auto& a, auto&) { a.type = zbcclInt8; }, {"cannot be added up"}},
       F{[](auto& a, auto&) { a.hidden = 3; }, {"multiple of 16"}},
       F{[](auto& a, auto& s) { a.out = s.y.data(); }, {"`y` and `out` overlap"}},
       F{[](auto& a, auto& s) { a.combined_topk_weights = s.weights.data(); },
         {"zbcclMoeRankMajor"}},
       F{[](auto& a, auto&) { a.hidden = 32; }, {"hidden is 64 on rank 0 and 32 on rank 1"}, true},
       F{[](auto& a, auto&) { a.pre_reduce = 1; }, {"pre_reduce is 0 on rank 0"}, true}},
      &Stage::combine, [](Stage& stage, const zbcclMoeCombine_t& args) {
        return zbcclMoeCombine(stage.handle.get(), &args, nullptr);
      });
}

TEST(MoeUsage, RanksThatPlaceExpertsDifferently) {
  run_job({.ranks = 3, .mode = Mode::kProcesses}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const bool odd = comm.rank() == kOdd;
    zbcclMoe_t moe = nullptr;
    zbcclMoeConfig_t config = ZBCCL_MOE_CONFIG_INITIALIZER;
    config.num_experts = odd ? 5 : 6;
    expect_error(zbcclInvalidUsage, zbcclMoeCreate(&moe, comm.get(), &config, nullptr),
                 {"num_experts is 6 on rank 0 and 5 on rank 1"});
    config.num_experts = odd ? 0 : 6;
    expect_error(odd ? zbcclInvalidArgument : zbcclInvalidUsage,
                 zbcclMoeCreate(&moe, comm.get(), &config, nullptr), {"num_experts is 0"});
    config.num_experts = 3;
    const int32_t same[] = {0, 1, 2};
    const int32_t other[] = {0, 2, 2};
    config.expert_ranks = odd ? other : same;
    expect_error(zbcclInvalidUsage, zbcclMoeCreate(&moe, comm.get(), &config, nullptr),
                 {"expert 1 is on rank 1", "on rank 2 by rank 1"});
    const int32_t wrong[] = {0, 3, 2};
    config.expert_ranks = odd ? wrong : same;
    expect_error(odd ? zbcclInvalidArgument : zbcclInvalidUsage,
                 zbcclMoeCreate(&moe, comm.get(), &config, nullptr), {"expert_ranks[1] is 3"});
    Stage(comm).expect_works();
    comm.destroy();
  });
}

// Handles and objects of different numbers, and other operations.
TEST(MoeUsage, RanksThatCallDifferentThings) {
  run_job({.ranks = 3, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Stage stage(comm);
    const bool odd = comm.rank() == kOdd;
    MoeHandle other = stage.moe.route(stage.routing);
    expect_error(zbcclInvalidUsage,
                 zbcclMoeDispatch(odd ? other.get() : stage.handle.get(), &stage.dispatch, nullptr),
                 {"the handle's number is 1 on rank 0 and 2 on rank 1"});
    expect_error(zbcclInvalidUsage,
                 odd ? zbcclMoeCombine(stage.handle.get(), &stage.combine, nullptr)
                     : zbcclMoeDispatch(stage.handle.get(), &stage.dispatch, nullptr),
                 {"moe_dispatch", "moe_combine"});
    expect_error(zbcclInvalidUsage,
                 odd ? zbcclBarrier(comm.get(), nullptr)
                     : zbcclMoeDispatch(stage.handle.get(), &stage.dispatch, nullptr),
                 {"moe_dispatch", "barrier"});
    stage.expect_untouched();
    Moe second(comm, kExperts);
    MoeHandle handle = second.route(stage.routing);
    expect_error(
        zbcclInvalidUsage,
        zbcclMoeDispatch(odd ? handle.get() : stage.handle.get(), &stage.dispatch, nullptr),
        {"object"});
    stage.expect_untouched();
    stage.expect_works();
    comm.destroy();
  });
}

// Processes: in one, a destroyed handle may serve another rank by now.
TEST(MoeUsage, StaleHandles) {
  run_job({.ranks = 2, .mode = Mode::kProcesses}, [](Rank& rank) {
    Communicator comm = connect(rank);
    auto stage = std::make_unique<Stage>(comm);
    zbcclMoeDispatch_t args = stage->dispatch;
    expect_error(zbcclInvalidArgument, zbcclMoeDispatch(nullptr, &args, nullptr), {"moe handle"});
    zbcclMoeHandle_t gone = nullptr;
    check(zbcclMoeRoute(stage->moe.get(), &stage->routing, &gone, nullptr));
    check(zbcclMoeHandleDestroy(gone));
    expect_error(zbcclInvalidUsage, zbcclMoeDispatch(gone, &args, nullptr), {"destroyed"});
    zbcclMoeInfo_t info = ZBCCL_MOE_INFO_INITIALIZER;
    expect_error(zbcclInvalidUsage, zbcclMoeHandleGetInfo(gone, &info), {"destroyed"});

    MoeHandle handle = std::move(stage->handle);
    stage->moe = Moe(comm, kExperts);  // the handle's is destroyed
    expect_error(zbcclInvalidUsage, zbcclMoeDispatch(handle.get(), &args, nullptr), {"stale"});
    expect_error(zbcclInvalidUsage, zbcclMoeCombine(handle.get(), &stage->combine, nullptr),
                 {"stale"});
    MoeHandle other = stage->moe.route(stage->routing);
    comm.destroy();
    expect_error(zbcclInvalidUsage, zbcclMoeDispatch(other.get(), &args, nullptr),
                 {"communicator", "destroyed"});
  });
}

TEST(MoeUsage, RoutesThatGoWithADispatch) {
  run_job({.ranks = 2, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Stage stage(comm, zbcclMoeExpertMajor);
    zbcclMoeRouting_t routing = stage.routing;
    routing.with_dispatch = 1;
    const bool odd = comm.rank() == kOdd;
    MoeHandle handle = stage.moe.route(routing);
    expect_error(zbcclInvalidArgument, zbcclMoeDispatch(handle.get(), &stage.dispatch, nullptr),
                 {"with_dispatch needs a capacity"});
    routing.capacity = stage.handle.info().allocated_rows;
    handle = stage.moe.route(routing);
    zbcclMoeInfo_t info = ZBCCL_MOE_INFO_INITIALIZER;
    expect_error(zbcclInvalidUsage, zbcclMoeHandleGetInfo(handle.get(), &info),
                 {"has not completed"});
    expect_error(zbcclInvalidUsage, zbcclMoeCombine(handle.get(), &stage.combine, nullptr),
                 {"has not completed"});
    zbcclMoeDispatch_t wrong = stage.dispatch;
    if (odd) wrong.recv_x = nullptr;
    expect_error(odd ? zbcclInvalidArgument : zbcclInvalidUsage,
                 zbcclMoeDispatch(handle.get(), &wrong, nullptr), {"recv_x"});
    stage.expect_untouched();
    handle.dispatch(stage.dispatch);  // routed by now
    handle.combine(stage.combine);
    EXPECT_EQ(stage.handle.info().num_rows, handle.info().num_rows);
    stage.expect_works();
  });
}

TEST(MoeUsage, PhasesOutOfOrder) {
  run_job({.ranks = 2, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Stage stage(comm);
    zbcclMoeDispatch_t dispatch = stage.dispatch;
    zbcclMoeCombine_t combine = stage.combine;
    dispatch.phase = zbcclMoeReceivePhase;
    expect_error(zbcclInvalidUsage, zbcclMoeDispatch(stage.handle.get(), &dispatch, nullptr),
                 {"send phase was not made"});
    dispatch.phase = zbcclMoeSendPhase;
    check(zbcclMoeDispatch(stage.handle.get(), &dispatch, nullptr));
    combine.phase = zbcclMoeReceivePhase;
    expect_error(zbcclInvalidUsage, zbcclMoeCombine(stage.handle.get(), &combine, nullptr),
                 {"sent earlier"});
    combine.phase = zbcclMoeSendPhase;
    check(zbcclMoeCombine(stage.handle.get(), &combine, nullptr));
    dispatch.phase = zbcclMoeReceivePhase;
    check(zbcclMoeDispatch(stage.handle.get(), &dispatch, nullptr));
    combine.phase = zbcclMoeReceivePhase;
    check(zbcclMoeCombine(stage.handle.get(), &combine, nullptr));
    zbcclWork_t work = nullptr;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.work = &work;
    dispatch.phase = zbcclMoeSendPhase;
    expect_error(zbcclInvalidArgument, zbcclMoeDispatch(stage.handle.get(), &dispatch, &call),
                 {"work"});
    comm.destroy();
  });
}

TEST(MoeUsage, GroupsTakeNone) {
  run_job({.ranks = 1, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Stage stage(comm);
    check(zbcclGroupStart());
    expect_error(zbcclInvalidUsage, zbcclMoeDispatch(stage.handle.get(), &stage.dispatch, nullptr),
                 {"group"});
    expect_error(zbcclInvalidUsage, zbcclGroupEnd());
    stage.expect_works();
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
