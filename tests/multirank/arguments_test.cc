// Calls that are wrong by themselves fail at once on the rank that makes them, without the others.
#include <gtest/gtest.h>

#include <climits>
#include <cstdint>
#include <string>

#include "support/connect.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

const auto kBadType = static_cast<zbcclDataType_t>(99);
const auto kBadOp = static_cast<zbcclRedOp_t>(-1);

// Each rank alone makes the wrong calls; then all together make a right one.
void with_comm(int ranks, const std::function<void(Communicator&, float*, float*)>& calls) {
  run_job({.ranks = ranks, .mode = Mode::kThreads}, [&](Rank& rank) {
    Communicator comm = connect(rank);
    float in[16] = {1};
    float out[64] = {};
    calls(comm, in, out);
    float one = 1;
    comm.all_reduce(&one, &one, 1, zbcclFloat32);
    EXPECT_EQ(static_cast<float>(comm.size()), one);
    comm.destroy();
  });
}

TEST(Arguments, NullCommunicator) {
  run_job({.ranks = 1}, [](Rank&) {
    float x = 0;
    int value = 0;
    zbcclResult_t state;
    zbcclComm_t out = nullptr;
    zbcclCommStats_t stats = {};
    stats.size = sizeof stats;
    const auto invalid = zbcclInvalidArgument;
    expect_error(invalid, zbcclAllReduce(&x, &x, 1, zbcclFloat32, zbcclSum, nullptr, nullptr));
    expect_error(invalid, zbcclAllGather(&x, &x, 1, zbcclFloat32, nullptr, nullptr));
    expect_error(invalid, zbcclReduceScatter(&x, &x, 1, zbcclFloat32, zbcclSum, nullptr, nullptr));
    expect_error(invalid, zbcclBroadcast(&x, &x, 1, zbcclFloat32, 0, nullptr, nullptr));
    const size_t one = 1;
    const auto f32 = zbcclFloat32;
    expect_error(invalid, zbcclReduce(&x, &x, 1, f32, zbcclSum, 0, nullptr, nullptr));
    expect_error(invalid, zbcclGather(&x, &x, 1, f32, 0, nullptr, nullptr));
    expect_error(invalid, zbcclScatter(&x, &x, 1, f32, 0, nullptr, nullptr));
    expect_error(invalid, zbcclAllToAll(&x, &x, 1, f32, nullptr, nullptr));
    expect_error(invalid, zbcclAllGatherV(&x, &x, &one, nullptr, f32, nullptr, nullptr));
    expect_error(invalid, zbcclReduceScatterV(&x, &x, &one, f32, zbcclSum, nullptr, nullptr));
    expect_error(invalid,
                 zbcclAllToAllV(&x, &one, nullptr, &x, &one, nullptr, f32, nullptr, nullptr));
    expect_error(invalid, zbcclBarrier(nullptr, nullptr));
    expect_error(invalid, zbcclSend(&x, 1, zbcclFloat32, 0, nullptr, nullptr));
    expect_error(invalid, zbcclRecv(&x, 1, zbcclFloat32, 0, nullptr, nullptr));
    expect_error(invalid, zbcclCommSplit(nullptr, 0, 0, &out, nullptr));
    expect_error(invalid, zbcclCommAbort(nullptr));
    expect_error(invalid, zbcclCommGetAsyncError(nullptr, &state));
    expect_error(invalid, zbcclCommCount(nullptr, &value));
    expect_error(invalid, zbcclCommUserRank(nullptr, &value));
    expect_error(invalid, zbcclCommGetStats(nullptr, &stats));
    EXPECT_STREQ("none", zbcclCommLastAlgorithm(nullptr));
  });
}

TEST(Arguments, NullResults) {
  run_job({.ranks = 1}, [](Rank& rank) {
    Communicator comm = connect(rank);
    zbcclUniqueId id = {};
    char text[192];
    const auto invalid = zbcclInvalidArgument;
    expect_error(invalid, zbcclGetVersion(nullptr));
    expect_error(invalid, zbcclGetUniqueId(nullptr));
    expect_error(invalid, zbcclUniqueIdToString(nullptr, text, sizeof text));
    expect_error(invalid, zbcclUniqueIdToString(&id, nullptr, 192));
    expect_error(invalid, zbcclUniqueIdFromString(nullptr, &id));
    expect_error(invalid, zbcclUniqueIdFromString("127.0.0.1:1/00", nullptr));
    expect_error(invalid, zbcclStoreCreateLocal(nullptr));
    expect_error(invalid, zbcclStoreCreateC10d(nullptr, 1, nullptr));
    expect_error(invalid, zbcclCommInitRank(nullptr, 1, id, 0, nullptr));
    expect_error(invalid, zbcclCommInitEnv(nullptr, nullptr));
    expect_error(invalid, zbcclCommInitAll(nullptr, 2, nullptr));
    expect_error(invalid, zbcclCommSplit(comm.get(), 0, 0, nullptr, nullptr));
    expect_error(invalid, zbcclCommGetAsyncError(comm.get(), nullptr));
    expect_error(invalid, zbcclCommCount(comm.get(), nullptr));
    expect_error(invalid, zbcclCommUserRank(comm.get(), nullptr));
    expect_error(invalid, zbcclMemAlloc(nullptr, 1));
    expect_error(invalid, zbcclMemGetReport(nullptr));
    expect_error(invalid, zbcclCommGetStats(comm.get(), nullptr));
    expect_error(invalid, zbcclGetEnvironment(nullptr, nullptr));
    expect_error(invalid, zbcclWorkWait(nullptr, 0));
    int done = 0;
    expect_error(invalid, zbcclWorkTest(nullptr, &done));
    EXPECT_EQ(zbcclSuccess, zbcclWorkFree(nullptr));
    EXPECT_EQ(zbcclSuccess, zbcclMemFree(nullptr));
    comm.destroy();
  });
}

TEST(Arguments, NullBuffers) {
  with_comm(2, [](Communicator& comm, float* in, float* out) {
    zbcclComm_t c = comm.get();
    const auto invalid = zbcclInvalidArgument;
    const auto f32 = zbcclFloat32;
    expect_error(invalid, zbcclAllReduce(nullptr, out, 4, f32, zbcclSum, c, nullptr), {"input"});
    expect_error(invalid, zbcclAllReduce(in, nullptr, 4, f32, zbcclSum, c, nullptr), {"output"});
    expect_error(invalid, zbcclAllGather(nullptr, out, 4, f32, c, nullptr));
    expect_error(invalid, zbcclAllGather(in, nullptr, 4, f32, c, nullptr));
    expect_error(invalid, zbcclReduceScatter(nullptr, out, 4, f32, zbcclSum, c, nullptr));
    expect_error(invalid, zbcclReduceScatter(in, nullptr, 4, f32, zbcclSum, c, nullptr));
    expect_error(invalid, zbcclBroadcast(nullptr, out, 4, f32, comm.rank(), c, nullptr));
    expect_error(invalid, zbcclBroadcast(in, nullptr, 4, f32, 0, c, nullptr));
    const int me = comm.rank();
    expect_error(invalid, zbcclReduce(nullptr, out, 4, f32, zbcclSum, 0, c, nullptr), {"input"});
    expect_error(invalid, zbcclReduce(in, nullptr, 4, f32, zbcclSum, me, c, nullptr), {"output"});
    expect_error(invalid, zbcclGather(nullptr, out, 4, f32, 0, c, nullptr), {"input"});
    expect_error(invalid, zbcclGather(in, nullptr, 4, f32, me, c, nullptr), {"output"});
    expect_error(invalid, zbcclScatter(nullptr, out, 4, f32, me, c, nullptr), {"input"});
    expect_error(invalid, zbcclScatter(in, nullptr, 4, f32, 0, c, nullptr), {"output"});
    expect_error(invalid, zbcclAllToAll(nullptr, out, 4, f32, c, nullptr), {"input"});
    expect_error(invalid, zbcclAllToAll(in, nullptr, 4, f32, c, nullptr), {"output"});
    const size_t counts[] = {2, 3};
    expect_error(invalid, zbcclAllGatherV(nullptr, out, counts, nullptr, f32, c, nullptr));
    expect_error(invalid, zbcclAllGatherV(in, nullptr, counts, nullptr, f32, c, nullptr));
    expect_error(invalid, zbcclReduceScatterV(nullptr, out, counts, f32, zbcclSum, c, nullptr));
    expect_error(invalid, zbcclReduceScatterV(in, nullptr, counts, f32, zbcclSum, c, nullptr));
    expect_error(invalid,
                 zbcclAllToAllV(nullptr, counts, nullptr, out, counts, nullptr, f32, c, nullptr));
    expect_error(invalid,
                 zbcclAllToAllV(in, counts, nullptr, nullptr, counts, nullptr, f32, c, nullptr));
    expect_error(invalid, zbcclSend(nullptr, 4, f32, 1 - comm.rank(), c, nullptr));
    expect_error(invalid, zbcclRecv(nullptr, 4, f32, 1 - comm.rank(), c, nullptr));
    // Nothing is read or written when there are no elements.
    EXPECT_EQ(zbcclSuccess, zbcclAllReduce(nullptr, nullptr, 0, f32, zbcclSum, c, nullptr));
    EXPECT_EQ(zbcclSuccess, zbcclAllGather(nullptr, nullptr, 0, f32, c, nullptr));
    EXPECT_EQ(zbcclSuccess, zbcclReduceScatter(nullptr, nullptr, 0, f32, zbcclSum, c, nullptr));
    EXPECT_EQ(zbcclSuccess, zbcclBroadcast(nullptr, nullptr, 0, f32, 0, c, nullptr));
    EXPECT_EQ(zbcclSuccess, zbcclReduce(nullptr, nullptr, 0, f32, zbcclSum, 1, c, nullptr));
    EXPECT_EQ(zbcclSuccess, zbcclGather(nullptr, nullptr, 0, f32, 1, c, nullptr));
    EXPECT_EQ(zbcclSuccess, zbcclScatter(nullptr, nullptr, 0, f32, 1, c, nullptr));
    EXPECT_EQ(zbcclSuccess, zbcclAllToAll(nullptr, nullptr, 0, f32, c, nullptr));
    const size_t none[] = {0, 0};
    const size_t places[] = {7, 9};
    for (const size_t* offsets : {static_cast<const size_t*>(nullptr), places}) {
      EXPECT_EQ(zbcclSuccess, zbcclAllGatherV(nullptr, nullptr, none, offsets, f32, c, nullptr));
      EXPECT_EQ(zbcclSuccess,
                zbcclAllToAllV(nullptr, none, offsets, nullptr, none, offsets, f32, c, nullptr));
    }
    EXPECT_EQ(zbcclSuccess, zbcclReduceScatterV(nullptr, nullptr, none, f32, zbcclSum, c, nullptr));
  });
}

TEST(Arguments, UnknownTypesAndOperators) {
  with_comm(2, [](Communicator& comm, float* in, float* out) {
    zbcclComm_t c = comm.get();
    const auto invalid = zbcclInvalidArgument;
    for (zbcclDataType_t type : {kBadType, zbcclNumTypes, static_cast<zbcclDataType_t>(-1)}) {
      expect_error(invalid, zbcclAllReduce(in, out, 1, type, zbcclSum, c, nullptr), {"type"});
      expect_error(invalid, zbcclAllGather(in, out, 1, type, c, nullptr));
      expect_error(invalid, zbcclReduceScatter(in, out, 1, type, zbcclSum, c, nullptr));
      expect_error(invalid, zbcclBroadcast(in, out, 1, type, 0, c, nullptr));
      const size_t ones[] = {1, 1};
      expect_error(invalid, zbcclReduce(in, out, 1, type, zbcclSum, 0, c, nullptr));
      expect_error(invalid, zbcclGather(in, out, 1, type, 0, c, nullptr));
      expect_error(invalid, zbcclScatter(in, out, 1, type, 0, c, nullptr));
      expect_error(invalid, zbcclAllToAll(in, out, 1, type, c, nullptr));
      expect_error(invalid, zbcclAllGatherV(in, out, ones, nullptr, type, c, nullptr));
      expect_error(invalid, zbcclReduceScatterV(in, out, ones, type, zbcclSum, c, nullptr));
      expect_error(invalid,
                   zbcclAllToAllV(in, ones, nullptr, out, ones, nullptr, type, c, nullptr));
      expect_error(invalid, zbcclSend(in, 1, type, 1 - comm.rank(), c, nullptr));
      expect_error(invalid, zbcclRecv(out, 1, type, 1 - comm.rank(), c, nullptr));
    }
    for (zbcclRedOp_t op : {kBadOp, zbcclNumOps}) {
      expect_error(invalid, zbcclAllReduce(in, out, 1, zbcclFloat32, op, c, nullptr), {"op"});
      expect_error(invalid, zbcclReduceScatter(in, out, 1, zbcclFloat32, op, c, nullptr));
      expect_error(invalid, zbcclReduce(in, out, 1, zbcclFloat32, op, 0, c, nullptr));
      const size_t ones[] = {1, 1};
      expect_error(invalid, zbcclReduceScatterV(in, out, ones, zbcclFloat32, op, c, nullptr));
    }
    EXPECT_EQ(0u, zbcclTypeSize(kBadType));
    EXPECT_STREQ("unknown", zbcclTypeName(kBadType));
    EXPECT_STREQ("unknown", zbcclOpName(kBadOp));
    EXPECT_STREQ("unknown", zbcclGetErrorString(static_cast<zbcclResult_t>(77)));
  });
}

TEST(Arguments, RootsAndPeers) {
  with_comm(3, [](Communicator& comm, float* in, float* out) {
    zbcclComm_t c = comm.get();
    const auto invalid = zbcclInvalidArgument;
    for (int bad : {-1, 3, INT_MAX, INT_MIN}) {
      const std::string word = std::to_string(bad);
      expect_error(invalid, zbcclBroadcast(in, out, 1, zbcclFloat32, bad, c, nullptr), {word});
      expect_error(invalid, zbcclReduce(in, out, 1, zbcclFloat32, zbcclSum, bad, c, nullptr),
                   {word, "root"});
      expect_error(invalid, zbcclGather(in, out, 1, zbcclFloat32, bad, c, nullptr), {word});
      expect_error(invalid, zbcclScatter(in, out, 1, zbcclFloat32, bad, c, nullptr), {word});
      expect_error(invalid, zbcclSend(in, 1, zbcclFloat32, bad, c, nullptr), {word});
      expect_error(invalid, zbcclRecv(out, 1, zbcclFloat32, bad, c, nullptr), {word});
    }
  });
}

TEST(Arguments, CountsThatOverflow) {
  with_comm(3, [](Communicator& comm, float* in, float* out) {
    zbcclComm_t c = comm.get();
    const auto invalid = zbcclInvalidArgument;
    const auto f32 = zbcclFloat32;
    for (size_t count : {SIZE_MAX, SIZE_MAX / 4 + 1, SIZE_MAX / 2}) {
      expect_error(invalid, zbcclAllReduce(in, out, count, f32, zbcclSum, c, nullptr), {"count"});
      expect_error(invalid, zbcclAllGather(in, out, count, f32, c, nullptr));
      expect_error(invalid, zbcclReduceScatter(in, out, count, f32, zbcclSum, c, nullptr));
      expect_error(invalid, zbcclBroadcast(in, out, count, f32, 0, c, nullptr));
      expect_error(invalid, zbcclReduce(in, out, count, f32, zbcclSum, 0, c, nullptr));
      expect_error(invalid, zbcclGather(in, out, count, f32, 0, c, nullptr));
      expect_error(invalid, zbcclScatter(in, out, count, f32, 0, c, nullptr));
      expect_error(invalid, zbcclAllToAll(in, out, count, f32, c, nullptr));
      for (int bad = 0; bad < 3; ++bad) {
        size_t counts[] = {1, 1, 1};
        const size_t ones[] = {1, 1, 1};
        counts[bad] = count;
        expect_error(invalid, zbcclAllGatherV(in, out, counts, nullptr, f32, c, nullptr),
                     {"all_gather_v", "memory"});
        expect_error(invalid, zbcclAllGatherV(in, out, ones, counts, f32, c, nullptr), {"memory"});
        expect_error(invalid, zbcclReduceScatterV(in, out, counts, f32, zbcclSum, c, nullptr));
        expect_error(invalid,
                     zbcclAllToAllV(in, counts, nullptr, out, ones, nullptr, f32, c, nullptr));
        expect_error(invalid,
                     zbcclAllToAllV(in, ones, nullptr, out, counts, nullptr, f32, c, nullptr));
        expect_error(invalid,
                     zbcclAllToAllV(in, ones, counts, out, ones, nullptr, f32, c, nullptr));
      }
      expect_error(invalid, zbcclSend(in, count, f32, (comm.rank() + 1) % 3, c, nullptr));
      expect_error(invalid, zbcclRecv(out, count, f32, (comm.rank() + 1) % 3, c, nullptr));
    }
    // Fits once, not three times.
    expect_error(invalid, zbcclAllGather(in, out, SIZE_MAX / 8, f32, c, nullptr));
    expect_error(invalid, zbcclReduceScatter(in, out, SIZE_MAX / 8, f32, zbcclSum, c, nullptr));
    // The range would wrap around the end of the address space.
    expect_error(invalid, zbcclAllReduce(in, out, SIZE_MAX / 4, f32, zbcclSum, c, nullptr));
  });
}

TEST(Arguments, OverlappingBuffers) {
  with_comm(2, [](Communicator& comm, float* in, float* out) {
    zbcclComm_t c = comm.get();
    const auto invalid = zbcclInvalidArgument;
    const auto f32 = zbcclFloat32;
    expect_error(invalid, zbcclAllReduce(out, out + 1, 4, f32, zbcclSum, c, nullptr), {"overlap"});
    expect_error(invalid, zbcclAllReduce(out + 3, out, 4, f32, zbcclSum, c, nullptr), {"overlap"});
    // In place is one position only.
    const int wrong = 1 - comm.rank();
    expect_error(invalid, zbcclAllGather(out + 4 * wrong, out, 4, f32, c, nullptr), {"overlap"});
    expect_error(invalid, zbcclReduceScatter(out, out + 4 * wrong, 4, f32, zbcclSum, c, nullptr),
                 {"overlap"});
    if (comm.rank() == 0) {
      expect_error(invalid, zbcclBroadcast(out, out + 2, 4, f32, 0, c, nullptr), {"overlap"});
    }
    const int me = comm.rank();
    const size_t counts[] = {3, 5};
    const size_t ends[] = {0, 3, 8};
    expect_error(invalid, zbcclReduce(out, out + 2, 4, f32, zbcclSum, me, c, nullptr), {"overlap"});
    expect_error(invalid, zbcclGather(out + 4 * wrong, out, 4, f32, me, c, nullptr), {"overlap"});
    expect_error(invalid, zbcclScatter(out, out + 4 * wrong, 4, f32, me, c, nullptr), {"overlap"});
    expect_error(invalid, zbcclAllToAll(out, out + 4, 4, f32, c, nullptr), {"overlap"});
    expect_error(invalid, zbcclAllGatherV(out + ends[wrong], out, counts, nullptr, f32, c, nullptr),
                 {"overlap"});
    expect_error(invalid,
                 zbcclReduceScatterV(out, out + ends[me] + 1, counts, f32, zbcclSum, c, nullptr),
                 {"overlap"});
    // All to all with sizes has no position in place.
    expect_error(invalid,
                 zbcclAllToAllV(out, counts, nullptr, out, counts, nullptr, f32, c, nullptr),
                 {"overlap"});
    // Side by side is fine.
    EXPECT_EQ(zbcclSuccess, zbcclAllReduce(out, out + 4, 4, f32, zbcclSum, c, nullptr));
    static_cast<void>(in);
  });
}

TEST(Arguments, PerRankSizes) {
  with_comm(3, [](Communicator& comm, float* in, float* out) {
    zbcclComm_t c = comm.get();
    const auto invalid = zbcclInvalidArgument;
    const auto f32 = zbcclFloat32;
    const size_t counts[] = {2, 0, 2};
    expect_error(invalid, zbcclAllGatherV(in, out, nullptr, nullptr, f32, c, nullptr), {"counts"});
    expect_error(invalid, zbcclReduceScatterV(in, out, nullptr, f32, zbcclSum, c, nullptr),
                 {"counts"});
    expect_error(invalid,
                 zbcclAllToAllV(in, nullptr, nullptr, out, counts, nullptr, f32, c, nullptr),
                 {"counts"});
    expect_error(invalid,
                 zbcclAllToAllV(in, counts, nullptr, out, nullptr, nullptr, f32, c, nullptr),
                 {"counts"});
    // Blocks of an output do not overlap; those of an input may.
    const size_t crossing[] = {5, 0, 4};
    expect_error(invalid, zbcclAllGatherV(in, out, counts, crossing, f32, c, nullptr),
                 {"ranks 2 and 0 overlap"});
    expect_error(invalid,
                 zbcclAllToAllV(in, counts, nullptr, out, counts, crossing, f32, c, nullptr),
                 {"overlap"});
    const size_t ones[] = {1, 1, 1};
    const size_t same[] = {3, 3, 3};
    in[3] = static_cast<float>(comm.rank());
    EXPECT_EQ(zbcclSuccess, zbcclAllToAllV(in, ones, same, out, ones, nullptr, f32, c, nullptr));
    for (int r = 0; r < 3; ++r) EXPECT_EQ(static_cast<float>(r), out[r]);
    // An empty block lies nowhere.
    const size_t inside[] = {4, 5, 6};
    const size_t own = comm.rank() == 1 ? 0 : 1;
    EXPECT_EQ(zbcclSuccess,
              zbcclAllGatherV(own == 0 ? nullptr : in, out, counts, inside, f32, c, nullptr));
  });
}

TEST(Arguments, StructSizes) {
  with_comm(2, [](Communicator& comm, float* in, float* out) {
    const auto invalid = zbcclInvalidArgument;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.size = 0;
    expect_error(invalid, zbcclAllReduce(in, out, 1, zbcclFloat32, zbcclSum, comm.get(), &call),
                 {"size"});
    call.size = sizeof call + 8;
    expect_error(invalid, zbcclBarrier(comm.get(), &call), {"size"});
    zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
    config.size = 3;
    zbcclComm_t made = nullptr;
    expect_error(invalid, zbcclCommInitAll(&made, 1, &config), {"size"});
    zbcclMemReport_t report = {};
    expect_error(invalid, zbcclMemGetReport(&report), {"size"});
    zbcclCommStats_t stats = {};
    expect_error(invalid, zbcclCommGetStats(comm.get(), &stats), {"size"});
  });
}

TEST(Arguments, ConfigurationAndTimeouts) {
  run_job({.ranks = 1}, [](Rank&) {
    zbcclComm_t comm = nullptr;
    zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
    config.timeout_ms = -1;
    expect_error(zbcclInvalidArgument, zbcclCommInitAll(&comm, 1, &config), {"timeout"});
    config = ZBCCL_CONFIG_INITIALIZER;
    config.host_wait = 3;
    expect_error(zbcclInvalidArgument, zbcclCommInitAll(&comm, 1, &config), {"host_wait"});
    expect_error(zbcclInvalidArgument, zbcclCommInitAll(&comm, 0, nullptr));
    expect_error(zbcclInvalidArgument, zbcclCommInitAll(&comm, -4, nullptr));
    zbcclUniqueId id;
    ASSERT_EQ(zbcclSuccess, zbcclGetUniqueId(&id));
    expect_error(zbcclInvalidArgument, zbcclCommInitRank(&comm, 0, id, 0, nullptr));
    // The other ranks are told as well, so this is the group's mistake.
    expect_error(zbcclInvalidUsage, zbcclCommInitRank(&comm, 2, id, 2, nullptr), {"rank", "2"});
    ASSERT_EQ(zbcclSuccess, zbcclGetUniqueId(&id));
    expect_error(zbcclInvalidUsage, zbcclCommInitRank(&comm, 2, id, -1, nullptr), {"rank", "-1"});
    EXPECT_EQ(nullptr, comm);
  });
}

TEST(Arguments, UniqueIds) {
  run_job({.ranks = 1}, [](Rank&) {
    zbcclUniqueId id;
    ASSERT_EQ(zbcclSuccess, zbcclGetUniqueId(&id));
    char text[192];
    ASSERT_EQ(zbcclSuccess, zbcclUniqueIdToString(&id, text, sizeof text));
    zbcclUniqueId again;
    ASSERT_EQ(zbcclSuccess, zbcclUniqueIdFromString(text, &again));
    char text_again[192];
    ASSERT_EQ(zbcclSuccess, zbcclUniqueIdToString(&again, text_again, sizeof text_again));
    EXPECT_STREQ(text, text_again);
    expect_error(zbcclInvalidArgument, zbcclUniqueIdToString(&id, text, 10));
    for (const char* bad : {"", "x", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999/00",
                            "127.0.0.1:80/xyz", "127.0.0.1:80/00"}) {
      expect_error(zbcclInvalidArgument, zbcclUniqueIdFromString(bad, &again));
    }
    zbcclUniqueId zero = {};
    zbcclComm_t comm = nullptr;
    expect_error(zbcclInvalidArgument, zbcclCommInitRank(&comm, 2, zero, 0, nullptr));
  });
}

TEST(Arguments, Memory) {
  run_job({.ranks = 1}, [](Rank&) {
    int local = 0;
    expect_error(zbcclInvalidArgument, zbcclMemFree(&local));
    void* memory = nullptr;
    ASSERT_EQ(zbcclSuccess, zbcclMemAlloc(&memory, 1000));
    expect_error(zbcclInvalidArgument, zbcclMemFree(static_cast<char*>(memory) + 64));
    EXPECT_EQ(zbcclSuccess, zbcclMemFree(memory));
    expect_error(zbcclInvalidArgument, zbcclMemFree(memory));
    void* none = nullptr;
    expect_error(zbcclOutOfMemory, zbcclMemAlloc(&none, SIZE_MAX));
    expect_error(zbcclOutOfMemory, zbcclMemAlloc(&none, SIZE_MAX / 2));
    EXPECT_EQ(nullptr, none);
    ASSERT_EQ(zbcclSuccess, zbcclMemAlloc(&memory, 0));  // may be freed, holds nothing
    EXPECT_EQ(zbcclSuccess, zbcclMemFree(memory));
  });
}

TEST(Arguments, DestroyedHandles) {
  run_job({.ranks = 1}, [](Rank&) {
    zbcclComm_t comm = nullptr;
    ASSERT_EQ(zbcclSuccess, zbcclCommInitAll(&comm, 1, nullptr));
    ASSERT_EQ(zbcclSuccess, zbcclCommDestroy(comm));
    float x = 0;
    expect_error(zbcclInvalidUsage,
                 zbcclAllReduce(&x, &x, 1, zbcclFloat32, zbcclSum, comm, nullptr), {"destroyed"});
    expect_error(zbcclInvalidUsage, zbcclCommDestroy(comm), {"destroyed"});
    expect_error(zbcclInvalidArgument, zbcclCommDestroy(nullptr));
    zbcclStore_t store = nullptr;
    ASSERT_EQ(zbcclSuccess, zbcclStoreCreateLocal(&store));
    EXPECT_EQ(zbcclSuccess, zbcclStoreDestroy(store));
    expect_error(zbcclInvalidUsage, zbcclStoreDestroy(store), {"destroyed"});
    expect_error(zbcclInvalidArgument, zbcclStoreDestroy(nullptr));
  });
}

TEST(Arguments, AStreamOnHostMemoryIsUnsupported) {
  with_comm(2, [](Communicator& comm, float* in, float* out) {
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.stream = in;
    expect_error(zbcclUnsupported,
                 zbcclAllReduce(in, out, 1, zbcclFloat32, zbcclSum, comm.get(), &call), {"stream"});
  });
}

TEST(Arguments, EnvironmentIsJson) {
  run_job({.ranks = 1}, [](Rank&) {
    size_t size = 0;
    ASSERT_EQ(zbcclSuccess, zbcclGetEnvironment(nullptr, &size));
    ASSERT_GT(size, 100u);
    std::string text(size, '?');
    size_t small = 10;
    expect_error(zbcclInvalidArgument, zbcclGetEnvironment(text.data(), &small));
    EXPECT_EQ(size, small);
    ASSERT_EQ(zbcclSuccess, zbcclGetEnvironment(text.data(), &size));
    EXPECT_EQ('\0', text.back());
    EXPECT_EQ('[', text.front());
    EXPECT_NE(std::string::npos, text.find("ZBCCL_TIMEOUT"));
  });
}

}  // namespace
}  // namespace zbccl::test
