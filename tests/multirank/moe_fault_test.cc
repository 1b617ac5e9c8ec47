// A rank that dies or does not come, in every phase of dispatch and combine: the others are told
// who and in which call, and end.
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <thread>
#include <vector>
#include <zbccl/moe.hpp>

#include "support/connect.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

constexpr int kVictim = 1;
constexpr int64_t kHidden = 1024;
constexpr int64_t kTokens = 64;
constexpr int kTopk = 2;
constexpr int kExperts = 6;
constexpr const char* kNames[] = {"moe_route", "moe_dispatch", "moe_combine"};

// The three calls of one layer, by number.
class Layer {
 public:
  explicit Layer(Communicator& comm) : moe_(comm, kExperts) {
    for (int64_t i = 0; i < kTokens * kTopk; ++i) topk_idx_.push_back((i * 5 + i / 7) % kExperts);
    routing_ = moe_routing(topk_idx_.data(), kTokens, kTopk, zbcclMoeExpertMajor);
    for (int phase = 0; phase < 3; ++phase) check(run(phase));
  }
  zbcclResult_t run(int phase, const zbcclCall_t* call = nullptr) {
    if (phase == 0) {
      zbcclMoeHandle_t handle = nullptr;
      const zbcclResult_t result = zbcclMoeRoute(moe_.get(), &routing_, &handle, call);
      if (result != zbcclSuccess) return result;
      handle_ = MoeHandle(handle);
      const auto rows = static_cast<size_t>(handle_.info().allocated_rows);
      if (recv_.size() < rows * kHidden) recv_ = Buffer<float>(rows * kHidden);
      return result;
    }
    if (phase == 1) {
      zbcclMoeDispatch_t args = moe_dispatch();
      args.type = zbcclFloat32;
      args.hidden = kHidden;
      args.x = x_.data();
      args.recv_x = recv_.data();
      return zbcclMoeDispatch(handle_.get(), &args, call);
    }
    zbcclMoeCombine_t args = moe_combine();
    args.type = zbcclFloat32;
    args.hidden = kHidden;
    args.y = recv_.data();
    args.out = out_.data();
    return zbcclMoeCombine(handle_.get(), &args, call);
  }

 private:
  Moe moe_;
  std::vector<int64_t> topk_idx_;
  zbcclMoeRouting_t routing_{};
  MoeHandle handle_;
  Buffer<float> x_{kTokens * kHidden};
  Buffer<float> recv_;
  Buffer<float> out_{kTokens * kHidden};
};

class MoeFault : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Phase, MoeFault, testing::Values(0, 1, 2));

TEST_P(MoeFault, RankThatDiesBeforeItsCall) {
  run_job({.ranks = 3, .killed = {kVictim}}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Layer layer(comm);
    rank.meet();  // nobody is still in the calls before
    for (int phase = 0; phase < GetParam(); ++phase) check(layer.run(phase));
    rank.meet();
    if (rank.rank() == kVictim) ::kill(::getpid(), SIGKILL);
    expect_error(zbcclRemoteFailed, layer.run(GetParam()), {"rank 1", "died"});
    expect_error(zbcclRemoteFailed, layer.run(0), {"rank 1"});
  });
}

TEST_P(MoeFault, RankThatDoesNotCome) {
  run_job({.ranks = 3, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Layer layer(comm);
    rank.meet();
    for (int phase = 0; phase < GetParam(); ++phase) check(layer.run(phase));
    rank.meet();
    if (rank.rank() != kVictim) {
      zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
      call.timeout_ms = rank.rank() == 0 ? 200 : 60'000;
      const zbcclResult_t got = layer.run(GetParam(), &call);
      expect_error(zbcclTimeout, got, {"rank 1"});
      if (rank.rank() == 0) expect_error(zbcclTimeout, got, {kNames[GetParam()], "200 ms"});
    }
    rank.meet();
  });
}

TEST(MoeFault, RankThatDiesAmongCalls) {
  run_job({.ranks = 3, .killed = {kVictim}}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Layer layer(comm);
    rank.meet();
    std::thread killer;
    if (rank.rank() == kVictim) {
      killer = std::thread([] {
        std::this_thread::sleep_for(std::chrono::milliseconds(60));
        ::kill(::getpid(), SIGKILL);
      });
    }
    zbcclResult_t got = zbcclSuccess;
    for (int i = 0; got == zbcclSuccess; ++i) got = layer.run(i % 3);
    expect_error(zbcclRemoteFailed, got, {"rank 1"});
    if (killer.joinable()) killer.join();
  });
}

// What is asynchronous is told by its work.
TEST(MoeFault, RankThatDiesWhileOthersReceiveLater) {
  run_job({.ranks = 3, .killed = {kVictim}}, [](Rank& rank) {
    Communicator comm = connect(rank);
    Layer layer(comm);
    rank.meet();
    if (rank.rank() == kVictim) ::kill(::getpid(), SIGKILL);
    zbcclWork_t raw = nullptr;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.work = &raw;
    check(layer.run(1, &call));
    expect_error(zbcclRemoteFailed, zbcclWorkWait(raw, 0), {"rank 1"});
    check(zbcclWorkFree(raw));
  });
}

}  // namespace
}  // namespace zbccl::test
