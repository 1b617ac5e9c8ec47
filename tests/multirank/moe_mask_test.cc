// Ranks that are masked out and back: no row goes between a rank and one that masks it.
#include <gtest/gtest.h>

#include "multirank/moe_case.h"
#include "support/connect.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

TEST(MoeMask, LeavesRanksOutAndTakesThemBack) {
  run_job({.ranks = 4, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    for (const int layout : {zbcclMoeRankMajor, zbcclMoeExpertMajor, zbcclMoeExpertMasked}) {
      MoeCase what;
      what.layout = layout;
      what.capacity = layout == zbcclMoeExpertMasked ? 200 : 0;
      MoeWorld world = make_world(what, comm.size());
      Moe moe = make_moe(comm, what, world);
      MoeArray indices;
      // Rank 1 is masked by two others, and rank 3 by rank 0 alone.
      world.masked.assign(4, std::vector<bool>(4, false));
      world.masked[0] = {false, true, false, true};
      world.masked[2] = {false, true, false, false};
      const auto me = static_cast<size_t>(comm.rank());
      for (int r = 0; r < 4; ++r) moe.set_mask(r, world.masked[me][static_cast<size_t>(r)]);
      int32_t seen[4] = {7, 7, 7, 7};
      check(zbcclMoeGetMask(moe.get(), seen));
      for (size_t r = 0; r < 4; ++r) EXPECT_EQ(world.masked[me][r] ? 1 : 0, seen[r]);
      {
        MoeHandle handle = route(moe, what, world, comm.rank(), indices);
        expect_info(handle, world, comm.rank());
        run_dispatch(handle, what, world, comm.rank());
        run_combine(handle, what, world, comm.rank());
      }
      for (int r = 0; r < 4; ++r) moe.set_mask(r, false);
      world.masked.clear();
      MoeHandle handle = route(moe, what, world, comm.rank(), indices);
      expect_info(handle, world, comm.rank());
      run_dispatch(handle, what, world, comm.rank());
      run_combine(handle, what, world, comm.rank());
    }
    comm.destroy();
  });
}

// A rank that is masked between the calls: what it has is left out of the sums.
TEST(MoeMask, CountsWhenCombining) {
  run_job({.ranks = 3, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    constexpr int64_t kHidden = 8;
    Moe moe(comm, 3);
    const std::vector<int64_t> topk_idx = {0, 1, 2};
    MoeHandle handle = moe.route(moe_routing(topk_idx.data(), 1, 3, zbcclMoeExpertMajor));
    const int64_t rows = handle.info().allocated_rows;
    const Buffer<float> y(static_cast<size_t>(rows * kHidden));
    const Buffer<float> out(kHidden);
    std::fill(y.begin(), y.end(), static_cast<float>(1 << comm.rank()));
    zbcclMoeCombine_t args = moe_combine();
    args.type = zbcclFloat32;
    args.hidden = kHidden;
    args.y = y.data();
    args.out = out.data();
    if (comm.rank() == 0) moe.set_mask(2, true);
    handle.combine(args);
    EXPECT_EQ(comm.rank() == 0 ? 3.0F : 7.0F, out[0]);
    if (comm.rank() == 0) moe.set_mask(2, false);
    handle.combine(args);
    EXPECT_EQ(7.0F, out[kHidden - 1]);
    comm.destroy();
  });
}

TEST(MoeMask, RefusesWhatIsNoPeer) {
  run_job({.ranks = 2, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Moe moe(comm, 2);
    expect_error(zbcclInvalidArgument, zbcclMoeSetMask(moe.get(), 2, 1), {"2", "no rank"});
    expect_error(zbcclInvalidArgument, zbcclMoeSetMask(moe.get(), -1, 1), {"-1"});
    expect_error(zbcclInvalidArgument, zbcclMoeSetMask(moe.get(), comm.rank(), 1), {"itself"});
    EXPECT_EQ(zbcclSuccess, zbcclMoeSetMask(moe.get(), comm.rank(), 0));
    expect_error(zbcclInvalidArgument, zbcclMoeGetMask(moe.get(), nullptr), {"masked"});
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
