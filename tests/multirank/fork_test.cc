// fork() in a process that has a communicator: the child's calls fail clearly, the parent's go on.
#include <gtest/gtest.h>

#include "support/connect.h"
#include "support/expect_error.h"
#include "support/process_state.h"

namespace zbccl::test {
namespace {

TEST(Fork, AnInheritedCommunicatorIsRefused) {
  if (thread_sanitized()) GTEST_SKIP() << "ThreadSanitizer does not follow a fork with threads";
  run_job({.ranks = 2}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Buffer<float> x(1000);
    std::fill(x.begin(), x.end(), 1.0f);
    comm.all_reduce(x.span());
    in_child([&] {
      float y = 1;
      expect_error(zbcclInvalidUsage,
                   zbcclAllReduce(&y, &y, 1, zbcclFloat32, zbcclSum, comm.get(), nullptr),
                   {"fork"});
      expect_error(zbcclInvalidUsage, zbcclBarrier(comm.get(), nullptr), {"fork"});
      expect_error(zbcclInvalidUsage,
                   zbcclSend(&y, 1, zbcclFloat32, 1 - rank.rank(), comm.get(), nullptr), {"fork"});
      zbcclComm_t part = nullptr;
      expect_error(zbcclInvalidUsage, zbcclCommSplit(comm.get(), 0, 0, &part, nullptr), {"fork"});
    });
    for (int i = 0; i < 5; ++i) comm.barrier();
    std::fill(x.begin(), x.end(), 1.0f);
    comm.all_reduce(x.span());
    EXPECT_EQ(2.0f, x[999]);
    comm.destroy();
  });
}

// A child can start afresh: its own communicator and its own memory.
TEST(Fork, AChildMayMakeItsOwn) {
  if (thread_sanitized()) GTEST_SKIP() << "ThreadSanitizer does not follow a fork with threads";
  run_job({.ranks = 1}, [](Rank& rank) {
    Communicator comm = connect(rank);
    comm.barrier();
    in_child([] {
      zbcclComm_t own = nullptr;
      ASSERT_EQ(zbcclSuccess, zbcclCommInitAll(&own, 1, nullptr)) << zbcclGetLastError();
      Buffer<float> x(100);
      std::fill(x.begin(), x.end(), 3.0f);
      EXPECT_EQ(zbcclSuccess,
                zbcclAllReduce(x.data(), x.data(), 100, zbcclFloat32, zbcclSum, own, nullptr));
      EXPECT_EQ(3.0f, x[99]);
      EXPECT_EQ(zbcclSuccess, zbcclCommDestroy(own));
    });
    comm.barrier();
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
