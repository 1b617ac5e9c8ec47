// What is handed on to NVIDIA's library, which a fake stands for.
#include <gtest/gtest.h>

#include <vector>

#include "nccl/fake_nccl.h"
#include "nccl/ranks.h"

namespace zbccl::test {
namespace {

const char* const kFake = ZBCCL_TEST_FAKE_FOLDER "/libnccl.so.2";

JobOptions with_library(int ranks, const std::string& library) {
  return {.ranks = ranks, .env = {{"ZBCCL_NCCL_LIBRARY", library}}};
}

ncclDevComm_t* out_of(FakeDevComm& comm) { return reinterpret_cast<ncclDevComm_t*>(&comm); }

bool operator==(const ncclTeam_t& a, const ncclTeam_t& b) {
  return a.nRanks == b.nRanks && a.rank == b.rank && a.stride == b.stride;
}

TEST(Forward, ThroughAShadow) {
  run_job(with_library(3, kFake), [](Rank& rank) {
    const Comm comm = connect(rank);
    EXPECT_TRUE(ncclTeamLsa(comm) == (ncclTeam_t{3, rank.rank(), 1}));
    FakeDevComm made = {};
    check(ncclDevCommCreate(comm, nullptr, out_of(made)));
    EXPECT_EQ(kFakeVersion, made.version);
    EXPECT_EQ(rank.rank(), made.rank);
    EXPECT_EQ(3, made.nranks);
    // From here on its teams are the other library's.
    EXPECT_TRUE(ncclTeamLsa(comm) == (ncclTeam_t{1, 0, 1}));
    EXPECT_EQ(1002, ncclTeamRankToWorld(comm, {3, 0, 1}, 2));
    check(ncclDevCommDestroy(comm, out_of(made)));
    EXPECT_EQ(42, ncclLLA2ACalcSlots(6, 7));
    expect_refused(ncclInvalidUsage, ncclLLA2ACreateRequirement(1, 1, nullptr, nullptr),
                   {"too old"});
    expect_sum(comm, rank.rank(), 3);
  });
}

TEST(Forward, OfAllRanksOfOneThread) {
  run_job(with_library(1, kFake), [](Rank&) {
    const std::vector<Comm> comms = connect_alone(3);
    std::vector<FakeDevComm> made(3);
    check(ncclGroupStart());
    for (size_t r = 0; r < 3; ++r) check(ncclDevCommCreate(comms[r], nullptr, out_of(made[r])));
    check(ncclGroupEnd());
    for (size_t r = 0; r < 3; ++r) EXPECT_EQ(static_cast<int>(r), made[r].rank);
  });
}

TEST(Forward, WhatIsMissingIsNamed) {
  const auto refused = [](const std::string& library, const std::vector<std::string>& words) {
    run_job(with_library(1, library), [&](Rank& rank) {
      const Comm comm = connect(rank);
      FakeDevComm made = {};
      expect_refused(ncclInvalidUsage, ncclDevCommCreate(comm, nullptr, out_of(made)), words);
      expect_refused(ncclInvalidUsage, ncclLsaBarrierCreateRequirement({}, 1, nullptr, nullptr),
                     words);
      expect_refused(ncclInvalidUsage,
                     ncclGinBarrierCreateRequirement(comm, {}, 1, nullptr, nullptr), words);
      expect_refused(ncclInvalidUsage, ncclLLA2ACreateRequirement(1, 1, nullptr, nullptr), words);
      EXPECT_EQ(0, ncclLLA2ACalcSlots(1, 1));
      expect_sum(comm, 0, 1);
    });
  };
  refused("/nowhere/libnccl.so.2", {"ZBCCL_NCCL_LIBRARY", "/nowhere"});
  refused(ZBCCL_TEST_LIBRARIES "/libzbccl_nccl.so", {"zbccl's own"});
  refused("libm.so.6", {"ncclGetUniqueId"});
}

TEST(Forward, ARankWithoutTheLibraryStopsAll) {
  run_job({.ranks = 2}, [](Rank& rank) {
    setenv("ZBCCL_NCCL_LIBRARY", rank.rank() == 0 ? kFake : "/nowhere/libnccl.so.2", 1);
    const Comm comm = connect(rank);
    FakeDevComm made = {};
    expect_refused(ncclInvalidUsage, ncclDevCommCreate(comm, nullptr, out_of(made)),
                   {rank.rank() == 0 ? "rank 1" : "/nowhere"});
    expect_sum(comm, rank.rank(), 2);
  });
}

TEST(Teams, OfOneMachine) {
  run_job({.ranks = 2}, [](Rank& rank) {
    const Comm comm = connect(rank);
    EXPECT_TRUE(ncclTeamWorld(comm) == (ncclTeam_t{2, rank.rank(), 1}));
    EXPECT_TRUE(ncclTeamLsa(comm) == (ncclTeam_t{2, rank.rank(), 1}));
    EXPECT_TRUE(ncclTeamRail(comm) == (ncclTeam_t{1, 0, 2}));
    EXPECT_EQ(1, ncclTeamRankToWorld(comm, ncclTeamWorld(comm), 1));
    EXPECT_EQ(rank.rank(), ncclTeamRankToLsa(comm, ncclTeamRail(comm), 0));
    EXPECT_EQ(0, ncclTeamWorld(nullptr).nRanks);
  });
}

}  // namespace
}  // namespace zbccl::test
