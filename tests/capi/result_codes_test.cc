// Result codes that a machine without a GPU can produce, each by a call that really fails that way.
// Time-outs, deaths and mismatches have tests of their own in tests/multirank; the rest are in
// internal_codes_test.cc.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdint>
#include <set>
#include <string>

#include "support/connect.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

TEST(ResultCodes, EachHasItsOwnText) {
  run_job({.ranks = 1}, [](Rank&) {
    std::set<std::string> texts;
    for (int code = 0; code < zbcclNumResults; ++code) {
      const std::string text = zbcclGetErrorString(static_cast<zbcclResult_t>(code));
      EXPECT_NE("", text);
      EXPECT_NE("unknown", text);
      EXPECT_TRUE(texts.insert(text).second) << text << " is the text of two codes";
    }
  });
}

TEST(ResultCodes, TheLastErrorBelongsToTheThread) {
  run_job({.ranks = 1}, [](Rank&) {
    EXPECT_STREQ("", zbcclGetLastError());
    expect_error(zbcclInvalidArgument, zbcclGetVersion(nullptr));
    std::string other = "?";
    std::thread([&] { other = zbcclGetLastError(); }).join();
    EXPECT_EQ("", other);
  });
}

TEST(ResultCodes, SuccessAndInvalidArgument) {
  run_job({.ranks = 1}, [](Rank&) {
    int version = 0;
    EXPECT_EQ(zbcclSuccess, zbcclGetVersion(&version));
    expect_error(zbcclInvalidArgument, zbcclGetVersion(nullptr), {"version"});
  });
}

TEST(ResultCodes, InvalidUsageAndTimeout) {
  run_job({.ranks = 2, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    float x = 0;
    const zbcclRedOp_t op = rank.rank() == 0 ? zbcclSum : zbcclMin;
    expect_error(zbcclInvalidUsage,
                 zbcclAllReduce(&x, &x, 1, zbcclFloat32, op, comm.get(), nullptr), {"sum", "min"});
    if (rank.rank() == 0) {
      zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
      call.timeout_ms = 50;
      expect_error(zbcclTimeout, zbcclBarrier(comm.get(), &call), {"rank 1"});
    }
    rank.meet();
    comm.destroy();
  });
}

TEST(ResultCodes, RemoteFailedAndAborted) {
  run_job({.ranks = 2, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Communicator other = connect(rank);
    if (rank.rank() == 0) {
      zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
      call.timeout_ms = 50;
      expect_error(zbcclTimeout, zbcclBarrier(comm.get(), &call));
      other.abort();
      rank.meet();
    } else {
      rank.meet();
      expect_error(zbcclRemoteFailed, zbcclBarrier(comm.get(), nullptr), {"rank 0"});
      expect_error(zbcclAborted, zbcclBarrier(other.get(), nullptr));
    }
    comm.destroy();
    other.destroy();
  });
}

// The limit on descriptors stops the library from making its sockets and segments. What it had made
// is given back, and with the limit lifted all works.
TEST(ResultCodes, OutOfMemoryWithoutDescriptors) {
  run_job({.ranks = 1}, [](Rank&) {
    rlimit old;
    ASSERT_EQ(0, ::getrlimit(RLIMIT_NOFILE, &old));
    const rlimit none{3, old.rlim_max};  // standard input, output, error
    ASSERT_EQ(0, ::setrlimit(RLIMIT_NOFILE, &none));
    zbcclComm_t comm = nullptr;
    expect_error(zbcclOutOfMemory, zbcclCommInitAll(&comm, 1, nullptr));
    zbcclUniqueId id;
    expect_error(zbcclOutOfMemory, zbcclGetUniqueId(&id));
    void* memory = nullptr;
    expect_error(zbcclOutOfMemory, zbcclMemAlloc(&memory, 100));
    ASSERT_EQ(0, ::setrlimit(RLIMIT_NOFILE, &old));
    EXPECT_EQ(zbcclSuccess, zbcclMemAlloc(&memory, 100)) << zbcclGetLastError();
    EXPECT_EQ(zbcclSuccess, zbcclMemFree(memory));
    ASSERT_EQ(zbcclSuccess, zbcclCommInitAll(&comm, 1, nullptr)) << zbcclGetLastError();
    EXPECT_EQ(zbcclSuccess, zbcclCommDestroy(comm));
  });
}

TEST(ResultCodes, OutOfMemoryByRequest) {
  run_job({.ranks = 1}, [](Rank&) {
    void* memory = nullptr;
    expect_error(zbcclOutOfMemory, zbcclMemAlloc(&memory, SIZE_MAX / 4));
    EXPECT_EQ(nullptr, memory);
  });
}

TEST(ResultCodes, Unsupported) {
  run_job({.ranks = 1}, [](Rank& rank) {
    Communicator comm = connect(rank);
    int stream = 0;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.stream = &stream;
    expect_error(zbcclUnsupported, zbcclBarrier(comm.get(), &call), {"stream"});
    comm.destroy();
  });
}

TEST(ResultCodes, NetworkErrorOrTimeoutWithoutAServer) {
  run_job({.ranks = 1, .env = {{"ZBCCL_INIT_TIMEOUT", "400ms"}}}, [](Rank&) {
    zbcclStore_t store = nullptr;
    const zbcclResult_t got = zbcclStoreCreateC10d("127.0.0.1", 1, &store);  // nobody listens
    EXPECT_TRUE(got == zbcclNetworkError || got == zbcclTimeout) << zbcclGetErrorString(got);
    EXPECT_NE(std::string::npos, std::string(zbcclGetLastError()).find("127.0.0.1"));
  });
}

}  // namespace
}  // namespace zbccl::test
