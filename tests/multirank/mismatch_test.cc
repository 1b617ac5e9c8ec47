// One rank's call differs from the others': every rank gets zbcclInvalidUsage with a message that
// names who differs and both values, no output is written, and the communicator works on.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "support/connect.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

constexpr size_t kCount = 1000;
constexpr int kOdd = 2;  // the rank that differs

// What a rank calls; `odd` on the rank that differs.
using Call = std::function<zbcclResult_t(const void* in, void* out, zbcclComm_t comm,
                                         const zbcclCall_t* call, bool odd)>;

struct Mismatch {
  const char* name;
  Call call;
  std::vector<std::string> words;
};

const std::vector<Mismatch>& mismatches() {
  static const std::vector<Mismatch> all = {
      {"AllReduceCount",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllReduce(in, out, odd ? kCount - 1 : kCount, zbcclFloat32, zbcclSum, comm,
                               call);
       },
       {"1000", "999"}},
      {"AllReduceCountZero",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllReduce(in, out, odd ? 0 : kCount, zbcclFloat32, zbcclSum, comm, call);
       },
       {"1000", "0"}},
      {"AllReduceType",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllReduce(in, out, kCount, odd ? zbcclInt32 : zbcclFloat32, zbcclSum, comm,
                               call);
       },
       {"f32", "i32"}},
      {"AllReduceOp",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllReduce(in, out, kCount, zbcclFloat32, odd ? zbcclMax : zbcclSum, comm,
                               call);
       },
       {"sum", "max"}},
      {"ReduceScatterCount",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclReduceScatter(in, out, odd ? 17 : 18, zbcclFloat32, zbcclSum, comm, call);
       },
       {"17", "18"}},
      {"AllGatherCount",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllGather(in, out, odd ? 17 : 18, zbcclFloat32, comm, call);
       },
       {"17", "18"}},
      {"AllGatherType",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllGather(in, out, 18, odd ? zbcclUint8 : zbcclBfloat16, comm, call);
       },
       {"u8", "bf16"}},
      {"BroadcastRoot",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclBroadcast(in, out, kCount, zbcclFloat32, odd ? 1 : 0, comm, call);
       },
       {"root", "0", "1"}},
      {"BroadcastCount",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclBroadcast(in, out, odd ? 333 : 444, zbcclFloat32, 0, comm, call);
       },
       {"333", "444"}},
      {"Operation",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return odd ? zbcclAllGather(in, out, 18, zbcclFloat32, comm, call)
                    : zbcclAllReduce(in, out, 18, zbcclFloat32, zbcclSum, comm, call);
       },
       {"all_gather", "all_reduce"}},
      {"OperationAgainstBarrier",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return odd ? zbcclBarrier(comm, call)
                    : zbcclAllReduce(in, out, kCount, zbcclFloat32, zbcclSum, comm, call);
       },
       {"barrier", "all_reduce"}},
      {"OperationAgainstBroadcast",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return odd ? zbcclReduceScatter(in, out, 10, zbcclFloat32, zbcclSum, comm, call)
                    : zbcclBroadcast(in, out, 10, zbcclFloat32, 0, comm, call);
       },
       {"reduce_scatter", "broadcast"}},
      {"ReduceRoot",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclReduce(in, out, kCount, zbcclFloat32, zbcclSum, odd ? 3 : 1, comm, call);
       },
       {"reduce", "root 3", "root 1"}},
      {"ReduceOp",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclReduce(in, out, kCount, zbcclFloat32, odd ? zbcclMin : zbcclProd, 0, comm,
                            call);
       },
       {"min", "prod"}},
      {"GatherCount",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclGather(in, out, odd ? 17 : 18, zbcclFloat32, 2, comm, call);
       },
       {"gather", "17", "18"}},
      {"ScatterRoot",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclScatter(in, out, 18, zbcclFloat32, odd ? 2 : 0, comm, call);
       },
       {"scatter", "root 2", "root 0"}},
      {"ScatterType",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclScatter(in, out, 18, odd ? zbcclInt16 : zbcclFloat16, 3, comm, call);
       },
       {"i16", "f16"}},
      {"AllToAllCount",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllToAll(in, out, odd ? 17 : 18, zbcclFloat32, comm, call);
       },
       {"all_to_all", "17", "18"}},
      {"AllToAllInPlaceOnOneRank",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return zbcclAllToAll(odd ? out : in, out, 18, zbcclFloat32, comm, call);
       },
       {"in place"}},
      {"AllGatherVSizes",  // that add up to the same
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const size_t counts[] = {10, 20, odd ? size_t{31} : 30, odd ? size_t{39} : 40};
         return zbcclAllGatherV(in, out, counts, nullptr, zbcclFloat32, comm, call);
       },
       {"all_gather_v", "10 20 30 40", "10 20 31 39"}},
      {"AllGatherVOrder",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const size_t counts[] = {odd ? size_t{20} : 10, odd ? size_t{10} : 20, 0, 0};
         return zbcclAllGatherV(in, out, counts, nullptr, zbcclFloat32, comm, call);
       },
       {"10 20 0 0", "20 10 0 0"}},
      {"ReduceScatterVSizes",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const size_t counts[] = {10, 20, 30, odd ? size_t{41} : 40};
         return zbcclReduceScatterV(in, out, counts, zbcclFloat32, zbcclSum, comm, call);
       },
       {"reduce_scatter_v", "40", "41"}},
      {"ReduceScatterVOp",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const size_t counts[] = {10, 20, 30, 40};
         return zbcclReduceScatterV(in, out, counts, zbcclFloat32, odd ? zbcclAvg : zbcclSum, comm,
                                    call);
       },
       {"avg", "sum"}},
      {"AllToAllVPair",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const size_t sent[] = {5, odd ? size_t{6} : 5, 5, 5};
         const size_t received[] = {5, 5, 5, 5};
         return zbcclAllToAllV(in, sent, nullptr, out, received, nullptr, zbcclFloat32, comm, call);
       },
       {"all_to_all_v", "rank 2 sends 6 to rank 1, which expects 5"}},
      {"AllToAllVReceiver",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const size_t sent[] = {5, 5, 5, 5};
         const size_t received[] = {5, 5, 5, odd ? size_t{0} : 5};
         return zbcclAllToAllV(in, sent, nullptr, out, received, nullptr, zbcclFloat32, comm, call);
       },
       {"rank 3 sends 5 to rank 2, which expects 0"}},
      {"AllToAllVSwappedSizes",  // of one rank: they add up to the same on both sides
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const size_t sent[] = {odd ? size_t{7} : 5, odd ? size_t{3} : 5, 5, 5};
         const size_t received[] = {5, 5, 5, 5};
         return zbcclAllToAllV(in, sent, nullptr, out, received, nullptr, zbcclFloat32, comm, call);
       },
       {"rank 2 sends 7 to rank 0", "rank 2 sends 3 to rank 1"}},
      {"AllToAllVType",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const size_t sizes[] = {1, 1, 1, 1};
         return zbcclAllToAllV(in, sizes, nullptr, out, sizes, nullptr,
                               odd ? zbcclUint32 : zbcclFloat32, comm, call);
       },
       {"u32", "f32"}},
      {"SizesAgainstNone",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         const size_t counts[] = {18, 18, 18, 18};
         return odd ? zbcclAllGatherV(in, out, counts, nullptr, zbcclFloat32, comm, call)
                    : zbcclAllGather(in, out, 18, zbcclFloat32, comm, call);
       },
       {"all_gather_v", "all_gather"}},
      {"ReduceAgainstAllReduce",
       [](auto in, auto out, auto comm, auto call, bool odd) {
         return odd ? zbcclAllReduce(in, out, 10, zbcclFloat32, zbcclSum, comm, call)
                    : zbcclReduce(in, out, 10, zbcclFloat32, zbcclSum, 0, comm, call);
       },
       {"all_reduce", "reduce"}},
  };
  return all;
}

void expect_usable(Communicator& comm) {
  for (int i = 0; i < 3; ++i) {
    std::vector<float> x(5000, 1.0f);
    comm.all_reduce(std::span<float>(x));
    EXPECT_EQ(static_cast<float>(comm.size()), x[4999]);
  }
  EXPECT_EQ(zbcclSuccess, comm.async_error());
}

class MismatchTest : public testing::TestWithParam<std::tuple<Mode, bool>> {};
INSTANTIATE_TEST_SUITE_P(Modes, MismatchTest,
                         testing::Combine(testing::Values(Mode::kThreads, Mode::kProcesses),
                                          testing::Bool()),
                         [](const auto& test) {
                           return std::string(mode_name(std::get<0>(test.param))) +
                                  (std::get<1>(test.param) ? "Registered" : "Plain");
                         });

TEST_P(MismatchTest, IsReportedByEveryRankAndHarmless) {
  const auto [mode, use_registered] = GetParam();
  run_job({.ranks = 4, .mode = mode}, [&, reg = use_registered](Rank& rank) {
    Communicator comm = connect(rank);
    const bool odd = rank.rank() == kOdd;
    for (const Mismatch& mismatch : mismatches()) {
      SCOPED_TRACE(mismatch.name);
      rank.note(mismatch.name);
      Guarded in = reg ? registered(kCount * 4) : Guarded::plain(kCount * 4);
      Guarded out = reg ? registered(kCount * 4) : Guarded::plain(kCount * 4);
      const zbcclResult_t got = mismatch.call(in.data(), out.data(), comm.get(), nullptr, odd);
      expect_error(zbcclInvalidUsage, got, mismatch.words);
      expect_error(zbcclInvalidUsage, got, {"rank " + std::to_string(kOdd)});
      EXPECT_TRUE(in.poisoned());
      EXPECT_TRUE(out.poisoned());
      EXPECT_EQ("", out.damage());
      expect_usable(comm);
    }
    EXPECT_EQ(mismatches().size(), comm.stats().failures);
    comm.destroy();
  });
}

TEST_P(MismatchTest, IsReportedByAsynchronousCallsToo) {
  const auto [mode, use_registered] = GetParam();
  run_job({.ranks = 4, .mode = mode}, [&, reg = use_registered](Rank& rank) {
    Communicator comm = connect(rank);
    for (const Mismatch& mismatch : mismatches()) {
      SCOPED_TRACE(mismatch.name);
      rank.note(mismatch.name);
      Guarded in = reg ? registered(kCount * 4) : Guarded::plain(kCount * 4);
      Guarded out = reg ? registered(kCount * 4) : Guarded::plain(kCount * 4);
      zbcclWork_t work = nullptr;
      zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
      call.work = &work;
      ASSERT_EQ(zbcclSuccess,
                mismatch.call(in.data(), out.data(), comm.get(), &call, rank.rank() == kOdd))
          << zbcclGetLastError();
      expect_error(zbcclInvalidUsage, zbcclWorkWait(work, 0), mismatch.words);
      EXPECT_EQ(zbcclSuccess, zbcclWorkFree(work));
      EXPECT_TRUE(out.poisoned());
      expect_usable(comm);
    }
    comm.destroy();
  });
}

TEST_P(MismatchTest, OfSendAndReceive) {
  const auto [mode, use_registered] = GetParam();
  run_job({.ranks = 3, .mode = mode}, [&, reg = use_registered](Rank& rank) {
    Communicator comm = connect(rank);
    for (bool type : {false, true}) {
      Guarded block = reg ? registered(800) : Guarded::plain(800);
      if (rank.rank() == 0) {
        expect_error(zbcclInvalidUsage,
                     zbcclSend(block.data(), 100, zbcclFloat32, 1, comm.get(), nullptr),
                     {"100", type ? "i32" : "200"});
      } else if (rank.rank() == 1) {
        expect_error(zbcclInvalidUsage,
                     zbcclRecv(block.data(), type ? 100 : 200, type ? zbcclInt32 : zbcclFloat32, 0,
                               comm.get(), nullptr),
                     {"100", type ? "f32" : "200"});
      }
      EXPECT_TRUE(block.poisoned());
      expect_usable(comm);
      int32_t value = 7;
      if (rank.rank() == 0) comm.send(&value, 1, zbcclInt32, 1);
      if (rank.rank() == 1) comm.recv(&value, 1, zbcclInt32, 0);
    }
    comm.destroy();
  });
}

// Several ranks differ, in different ways.
TEST(MismatchMany, EveryRankDiffers) {
  run_job({.ranks = 4}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Guarded block = registered(4000);
    expect_error(zbcclInvalidUsage,
                 zbcclAllReduce(block.data(), block.data(), 10 + static_cast<size_t>(rank.rank()),
                                zbcclFloat32, zbcclSum, comm.get(), nullptr));
    EXPECT_TRUE(block.poisoned());
    expect_usable(comm);
    comm.destroy();
  });
}

// The late rank is the one that differs: the others may not have finished before it came.
TEST(MismatchMany, TheLastToComeDiffers) {
  run_job({.ranks = 3}, [](Rank& rank) {
    Communicator comm = connect(rank);
    for (size_t count : {size_t{4}, size_t{100000}}) {
      Guarded in = registered(4 * count);
      Guarded out = registered(4 * count);
      const bool odd = rank.rank() == 2;
      if (odd) std::this_thread::sleep_for(std::chrono::milliseconds(50));
      expect_error(zbcclInvalidUsage,
                   zbcclAllReduce(in.data(), out.data(), odd ? 3 : count, zbcclFloat32, zbcclSum,
                                  comm.get(), nullptr),
                   {"rank 2"});
      EXPECT_TRUE(out.poisoned());
      expect_usable(comm);
    }
    comm.destroy();
  });
}

// Three ranks meet; `call` is each one's initialisation, which is refused with `words`.
void expect_refused(const std::function<zbcclResult_t(Rank&, zbcclComm_t*, zbcclUniqueId)>& call,
                    const std::vector<std::string>& words) {
  run_job({.ranks = 3}, [&](Rank& rank) {
    zbcclUniqueId id;
    if (rank.rank() == 0) {
      check(zbcclGetUniqueId(&id));
      rank.board().put_blob(0, &id, sizeof id);
    }
    ASSERT_TRUE(rank.board().get_blob(0, &id, sizeof id, std::chrono::seconds(30)));
    zbcclComm_t comm = nullptr;
    expect_error(zbcclInvalidUsage, call(rank, &comm, id), words);
    EXPECT_EQ(nullptr, comm);
    rank.meet();
  });
}

zbcclResult_t with_a_world_of_its_own(Rank& rank, zbcclComm_t* comm, zbcclUniqueId id) {
  const zbcclConfig_t config = test_config();
  return zbcclCommInitRank(comm, rank.rank() == 2 ? 4 : 3, id, rank.rank(), &config);
}

TEST(MismatchInit, DifferentWorldSizes) { expect_refused(with_a_world_of_its_own, {"3", "4"}); }

// The others have failed and left, and with them the rank whose process serves the meeting place.
TEST(MismatchInit, IsHeardByARankThatComesLate) {
  const auto late = [](Rank& rank, zbcclComm_t* comm, zbcclUniqueId id) {
    if (rank.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return with_a_world_of_its_own(rank, comm, id);
  };
  expect_refused(late, {"3", "4"});
}

TEST(MismatchInit, OneRankTwice) {
  const auto twice = [](Rank& rank, zbcclComm_t* comm, zbcclUniqueId id) {
    const zbcclConfig_t config = test_config();
    return zbcclCommInitRank(comm, 3, id, rank.rank() == 2 ? 1 : rank.rank(), &config);
  };
  expect_refused(twice, {"rank 1"});
}

}  // namespace
}  // namespace zbccl::test
