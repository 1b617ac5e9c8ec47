// A rank is killed or stopped at a random moment of each part of a communicator's life. See trial.h
// for what is checked each time.
#include <gtest/gtest.h>

#include <vector>

#include "fault/trial.h"

namespace zbccl::test {
namespace {

constexpr int kTrials = 20;

int size_of(zbcclComm_t comm) {
  int size = 0;
  check(zbcclCommCount(comm, &size));
  return size;
}
int rank_of(zbcclComm_t comm) {
  int rank = 0;
  check(zbcclCommUserRank(comm, &rank));
  return rank;
}

class Matrix : public testing::TestWithParam<Fault> {};
INSTANTIATE_TEST_SUITE_P(Faults, Matrix, testing::Values(Fault::kKill, Fault::kStop),
                         [](const auto& test) {
                           return test.param == Fault::kKill ? "Kill" : "Stop";
                         });

Told small_all_reduces(zbcclComm_t comm, int /*victim*/) {
  for (float x = 1;;) {
    const Told got = told(zbcclAllReduce(&x, &x, 1, zbcclFloat32, zbcclMax, comm, nullptr));
    if (got.code != zbcclSuccess) return got;
  }
}

// The moment lies somewhere from the first word between the ranks to the first operations.
TEST_P(Matrix, Bootstrap) {
  TrialOptions options;
  options.from_start = true;
  options.window = std::chrono::milliseconds(25);
  run_trials(GetParam(), kTrials, small_all_reduces, options);
}

// Every operation meets memory that no peer has mapped yet, until the pool has many segments.
TEST_P(Matrix, Registration) {
  TrialOptions options;
  options.env = {{"ZBCCL_POOL_RESERVE", "64K"}, {"ZBCCL_ONE_SHOT_MAX", "1"}};
  const auto body = [](zbcclComm_t comm, int /*victim*/) {
    constexpr size_t kCount = 14'000;  // most of a segment of 64 KiB
    std::vector<Buffer<float>> all;
    for (int i = 0;; ++i) {
      if (i < 200) all.emplace_back(kCount);
      float* x = all.back().data();
      const Told got = told(zbcclAllReduce(x, x, kCount, zbcclFloat32, zbcclMax, comm, nullptr));
      if (got.code != zbcclSuccess) return got;
    }
  };
  run_trials(GetParam(), kTrials, body, options);
}

Told large_all_reduces(zbcclComm_t comm, int /*victim*/) {
  constexpr size_t kCount = 300'000;
  Buffer<float> registered(kCount);
  std::vector<float> plain(kCount);
  for (;;) {
    for (float* x : {registered.data(), plain.data()}) {
      const Told got = told(zbcclAllReduce(x, x, kCount, zbcclFloat32, zbcclMax, comm, nullptr));
      if (got.code != zbcclSuccess) return got;
    }
  }
}

Told all_gathers(zbcclComm_t comm, int /*victim*/) {
  Buffer<float> in(20'000);
  Buffer<float> out(in.size() * static_cast<size_t>(size_of(comm)));
  for (;;) {
    const Told got =
        told(zbcclAllGather(in.data(), out.data(), in.size(), zbcclFloat32, comm, nullptr));
    if (got.code != zbcclSuccess) return got;
  }
}

// Everybody exchanges messages with the victim alone, so that whoever waits waits for it.
Told messages(zbcclComm_t comm, int victim) {
  constexpr size_t kCount = 5000;
  std::vector<float> in(kCount * static_cast<size_t>(size_of(comm)));
  std::vector<float> out(kCount);
  for (;;) {
    std::vector<Work> works;
    for (int peer = 0; peer < size_of(comm); ++peer) {
      if (peer == rank_of(comm) || (rank_of(comm) != victim && peer != victim)) continue;
      for (const bool send : {false, true}) {
        zbcclWork_t work = nullptr;
        zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
        call.work = &work;
        float* to = in.data() + kCount * static_cast<size_t>(peer);
        const Told got = told(send ? zbcclSend(out.data(), kCount, zbcclFloat32, peer, comm, &call)
                                   : zbcclRecv(to, kCount, zbcclFloat32, peer, comm, &call));
        if (got.code != zbcclSuccess) return got;
        works.emplace_back(work);
      }
    }
    for (Work& work : works) {
      try {
        work.wait();
      } catch (const Error& error) {
        return {error.code(), error.what()};
      }
    }
  }
}

// A stopped rank costs its peers' deadline, so that the four share the trials.
int number(Fault fault) { return fault == Fault::kKill ? kTrials : kTrials / 4; }

TEST_P(Matrix, CollectiveSmall) { run_trials(GetParam(), number(GetParam()), small_all_reduces); }
TEST_P(Matrix, CollectiveLarge) { run_trials(GetParam(), number(GetParam()), large_all_reduces); }
TEST_P(Matrix, CollectiveGather) { run_trials(GetParam(), number(GetParam()), all_gathers); }
TEST_P(Matrix, CollectiveMessages) { run_trials(GetParam(), number(GetParam()), messages); }

// Communicators come and go all the time.
TEST_P(Matrix, Teardown) {
  const Fault fault = GetParam();
  run_trials(fault, kTrials, [fault](zbcclComm_t comm, int /*victim*/) {
    zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
    config.init_timeout_ms = fault == Fault::kStop ? stop_timeout().count() : 60'000;
    for (;;) {
      zbcclComm_t part = nullptr;
      const Told got = told(zbcclCommSplit(comm, 0, rank_of(comm), &part, &config));
      if (got.code != zbcclSuccess) return got;
      EXPECT_EQ(zbcclSuccess, zbcclCommDestroy(part)) << zbcclGetLastError();
    }
  });
}

}  // namespace
}  // namespace zbccl::test
