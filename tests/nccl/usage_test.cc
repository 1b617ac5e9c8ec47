// Wrong arguments and wrong states, each with a code of NCCL's and a message.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "nccl/ranks.h"

namespace zbccl::test {
namespace {

void alone(const std::function<void()>& body) {
  run_job({.ranks = 1}, [&](Rank&) { body(); });
}

ncclComm_t made() {
  ncclUniqueId id;
  check(ncclGetUniqueId(&id));
  ncclComm_t comm = nullptr;
  check(ncclCommInitRank(&comm, 1, id, 0));
  return comm;
}

TEST(Usage, OfInit) {
  alone([] {
    ncclUniqueId id;
    check(ncclGetUniqueId(&id));
    ncclComm_t comm = nullptr;
    expect_refused(ncclInvalidArgument, ncclGetUniqueId(nullptr), {"uniqueId"});
    expect_refused(ncclInvalidArgument, ncclCommInitRank(nullptr, 1, id, 0), {"comm"});
    expect_refused(ncclInvalidArgument, ncclCommInitRank(&comm, 0, id, 0), {"0 ranks"});
    expect_refused(ncclInvalidArgument, ncclCommInitRank(&comm, 2, id, 2), {"not a rank"});
    expect_refused(ncclInvalidArgument, ncclCommInitRank(&comm, 2, id, -1), {"not a rank"});
    expect_refused(ncclInvalidArgument, ncclCommInitAll(&comm, 0, nullptr), {"0 ranks"});
    expect_refused(ncclInvalidArgument, ncclCommInitRankScalable(&comm, 1, 0, 2, &id, nullptr),
                   {"2 ids"});
    expect_refused(ncclInvalidArgument, ncclCommInitRankScalable(&comm, 1, 0, 1, nullptr, nullptr),
                   {"commIds"});
    std::memset(&id, 'x', sizeof id);
    expect_refused(ncclInvalidArgument, ncclCommInitRank(&comm, 1, id, 0));
    EXPECT_EQ(nullptr, comm);
  });
}

TEST(Usage, OfConfigs) {
  alone([] {
    ncclUniqueId id;
    check(ncclGetUniqueId(&id));
    const auto refused = [&](auto&& change, const char* word) {
      ncclConfig_t config = open_config();
      change(config);
      ncclComm_t comm = nullptr;
      expect_refused(ncclInvalidArgument, ncclCommInitRankConfig(&comm, 1, id, 0, &config), {word});
      EXPECT_EQ(nullptr, comm);
    };
    refused([](ncclConfig_t& c) { c.magic = 1; }, "NCCL_CONFIG_INITIALIZER");
    refused([](ncclConfig_t& c) { c.size = 8; }, "NCCL_CONFIG_INITIALIZER");
    refused([](ncclConfig_t& c) { c.blocking = 2; }, "blocking");
    refused([](ncclConfig_t& c) { c.maxCTAs = 0; }, "maxCTAs");
    refused([](ncclConfig_t& c) { c.cgaClusterSize = 9; }, "cgaClusterSize");
    refused([](ncclConfig_t& c) { c.splitShare = -1; }, "splitShare");
    refused([](ncclConfig_t& c) { c.minCTAs = 5, c.maxCTAs = 4; }, "minCTAs");
  });
}

TEST(Usage, OfOperations) {
  alone([] {
    const Comm comm(made());
    float value = 1;
    const auto all_reduce = [&](const void* in, void* out, int type, int op, ncclComm_t on) {
      return ncclAllReduce(in, out, 1, static_cast<ncclDataType_t>(type),
                           static_cast<ncclRedOp_t>(op), on, nullptr);
    };
    expect_refused(ncclInvalidArgument, all_reduce(&value, &value, 7, 0, nullptr), {"null"});
    expect_refused(ncclInvalidArgument, all_reduce(&value, &value, 12, 0, comm), {"12"});
    expect_refused(ncclInvalidArgument, all_reduce(&value, &value, -1, 0, comm), {"-1"});
    expect_refused(ncclInvalidArgument, all_reduce(&value, &value, 7, 5, comm), {"operator"});
    expect_refused(ncclInvalidArgument, all_reduce(&value, &value, 7, -1, comm), {"operator"});
    expect_refused(ncclInvalidArgument, all_reduce(nullptr, &value, 7, 0, comm), {"null"});
    expect_refused(ncclInvalidArgument, all_reduce(&value, nullptr, 7, 0, comm), {"null"});
    expect_refused(ncclInvalidArgument,
                   ncclBroadcast(&value, &value, 1, ncclFloat32, 1, comm, nullptr), {"not a rank"});
    expect_refused(ncclInvalidArgument, ncclSend(&value, 1, ncclFloat32, -1, comm, nullptr),
                   {"not a rank"});
    // There is no CUDA here that could order it.
    auto* const stream = reinterpret_cast<cudaStream_t>(&value);
    expect_refused(ncclInvalidUsage,
                   ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, comm, stream),
                   {"stream"});
  });
}

TEST(Usage, OfHandles) {
  alone([] {
    ncclComm_t comm = made();
    int number = 0;
    ncclResult_t state = ncclSuccess;
    expect_refused(ncclInvalidArgument, ncclCommCount(comm, nullptr), {"count"});
    expect_refused(ncclInvalidArgument, ncclCommGetAsyncError(comm, nullptr), {"asyncError"});
    expect_refused(ncclInvalidArgument, ncclCommRevoke(comm, 1), {"flags"});
    check(ncclCommDestroy(comm));
    check(ncclCommDestroy(nullptr));
    check(ncclCommAbort(nullptr));
    expect_refused(ncclInvalidArgument, ncclCommDestroy(comm), {"destroyed"});
    expect_refused(ncclInvalidArgument, ncclCommCount(comm, &number), {"destroyed"});
    expect_refused(ncclInvalidArgument, ncclCommGetAsyncError(comm, &state), {"destroyed"});
    expect_refused(ncclInvalidArgument, ncclCommFinalize(comm), {"destroyed"});
  });
}

TEST(Usage, OfSplitAndShrink) {
  alone([] {
    const Comm comm(made());
    ncclComm_t part = nullptr;
    expect_refused(ncclInvalidArgument, ncclCommSplit(comm, -2, 0, &part, nullptr), {"color"});
    expect_refused(ncclInvalidArgument, ncclCommSplit(comm, 0, 0, nullptr, nullptr), {"newcomm"});
    int gone[] = {0, 0};
    expect_refused(ncclInvalidArgument, ncclCommShrink(comm, gone, 1, &part, nullptr, 0),
                   {"itself"});
    expect_refused(ncclInvalidArgument, ncclCommShrink(comm, gone, 2, &part, nullptr, 0),
                   {"twice"});
    expect_refused(ncclInvalidArgument, ncclCommShrink(comm, gone, 0, &part, nullptr, 0),
                   {"0 ranks"});
    expect_refused(ncclInvalidArgument, ncclCommShrink(comm, nullptr, 1, &part, nullptr, 0),
                   {"excludeRanksList"});
    gone[0] = 1;
    expect_refused(ncclInvalidArgument, ncclCommShrink(comm, gone, 1, &part, nullptr, 0),
                   {"not a rank"});
    expect_refused(ncclInvalidArgument, ncclCommShrink(comm, gone, 1, &part, nullptr, 2),
                   {"flags"});
  });
}

TEST(Usage, OfMemory) {
  alone([] {
    const Comm comm(made());
    void* handle = nullptr;
    ncclWindow_t window = nullptr;
    float value = 0;
    expect_refused(ncclInvalidArgument, ncclMemAlloc(nullptr, 8), {"ptr"});
    expect_refused(ncclInvalidArgument, ncclCommRegister(comm, nullptr, 8, &handle), {"buff"});
    expect_refused(ncclInvalidArgument, ncclCommRegister(comm, &value, 8, nullptr), {"handle"});
    expect_refused(ncclInvalidArgument, ncclCommDeregister(comm, &value), {"no registration"});
    expect_refused(ncclInvalidArgument, ncclCommWindowRegister(comm, &value, 4, &window, 2),
                   {"flags"});
    check(ncclCommWindowDeregister(comm, nullptr));
    expect_refused(ncclInvalidArgument,
                   ncclCommWindowDeregister(comm, reinterpret_cast<ncclWindow_t>(&value)),
                   {"no window"});
  });
}

TEST(Usage, EveryCodeHasAText) {
  alone([] {
    std::vector<std::string> texts;
    for (int code = 0; code <= ncclNumResults; ++code) {
      const std::string text = ncclGetErrorString(static_cast<ncclResult_t>(code));
      EXPECT_FALSE(text.empty());
      EXPECT_EQ(0, std::count(texts.begin(), texts.end(), text)) << text;
      texts.push_back(text);
      EXPECT_STREQ(text.c_str(), pncclGetErrorString(static_cast<ncclResult_t>(code)));
    }
  });
}

// What one thread was told is known to another, as watchdogs expect.
TEST(Usage, TheLastErrorIsTheProcesss) {
  alone([] {
    std::thread([] { EXPECT_EQ(ncclInvalidArgument, ncclGetUniqueId(nullptr)); }).join();
    EXPECT_NE(std::string::npos, std::string(ncclGetLastError(nullptr)).find("uniqueId"));
  });
}

TEST(Version, IsThatOfTheInterface) {
  alone([] {
    int version = 0;
    check(ncclGetVersion(&version));
    EXPECT_EQ(22809, version);
    expect_refused(ncclInvalidArgument, ncclGetVersion(nullptr), {"version"});
    ncclResetDebugInit();
    ncclResetDebugInitInternal();
  });
}

TEST(Version, CanBeAnother) {
  run_job({.ranks = 1, .env = {{"ZBCCL_NCCL_VERSION", "22703"}}}, [](Rank&) {
    int version = 0;
    check(ncclGetVersion(&version));
    EXPECT_EQ(22703, version);
  });
}

}  // namespace
}  // namespace zbccl::test
