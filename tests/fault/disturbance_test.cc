// What a program does to itself while its ranks communicate: it aborts from another thread, leaves
// a scope by an exception, forks, executes another program, and is interrupted by signals.
#include <gtest/gtest.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "fault/calls.h"
#include "support/connect.h"
#include "support/expect_error.h"
#include "support/process_state.h"

namespace zbccl::test {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

struct Setting {
  Mode mode;
  const char* wait;
};

class Disturbance : public testing::TestWithParam<Setting> {
 protected:
  JobOptions job(int ranks) const {
    return {.ranks = ranks,
            .mode = GetParam().mode,
            .deadline = seconds(90),
            .env = {{"ZBCCL_HOST_WAIT", GetParam().wait}}};
  }
};
INSTANTIATE_TEST_SUITE_P(Settings, Disturbance,
                         testing::Values(Setting{Mode::kThreads, "spin"},
                                         Setting{Mode::kThreads, "sleep"},
                                         Setting{Mode::kProcesses, "spin"},
                                         Setting{Mode::kProcesses, "sleep"}),
                         [](const auto& test) {
                           return std::string(mode_name(test.param.mode)) + "_" + test.param.wait;
                         });

// The last rank does not come; another thread of rank 0 ends what the others wait in.
TEST_P(Disturbance, AbortEndsEveryOperation) {
  run_job(job(3), [](Rank& rank) {
    Communicator comm = connect(rank);
    for (const size_t count : {size_t{3}, size_t{100'000}}) {
      for (int call = 0; call < CallSet::kNumCalls; ++call) {
        rank.note(CallSet::name(call));
        Communicator part = comm.split(0, rank.rank());
        CallSet calls(part.get(), count);
        rank.meet();  // nobody is still in the split
        const auto start = steady_clock::now();
        if (rank.rank() == 2) {
          while (part.async_error() == zbcclSuccess && steady_clock::now() - start < seconds(20)) {
            std::this_thread::sleep_for(milliseconds(1));
          }
        } else {
          std::thread other;
          if (rank.rank() == 0) {
            other = std::thread([&] {
              std::this_thread::sleep_for(milliseconds(5));
              part.abort();
            });
          }
          expect_error(zbcclAborted, calls.run(call, 2, nullptr), {"rank", "aborted"});
          if (other.joinable()) other.join();
        }
        EXPECT_LT(steady_clock::now() - start, seconds(10)) << CallSet::name(call);
        EXPECT_EQ(zbcclAborted, part.async_error());
        part.destroy();
      }
    }
    comm.barrier();
    comm.destroy();
  });
}

// An exception ends a rank's communicator: its peers get an error and do not wait for ever, whether
// the rank had work under way or not.
TEST_P(Disturbance, AnExceptionLeavesNobodyWaiting) {
  for (const bool with_work : {false, true}) {
    run_job(job(3), [with_work](Rank& rank) {
      Communicator comm = connect(rank);
      for (int call = 0; call < CallSet::kNumCalls; ++call) {
        const auto start = steady_clock::now();
        float never = 0;  // outlives the communicator that may write to it
        if (rank.rank() == 1) {
          try {
            Communicator part = comm.split(0, rank.rank());
            rank.meet();  // nobody is still in the split
            Work work;
            if (with_work) work = part.recv_async(&never, 1, zbcclFloat32, 1);  // nobody sends it
            throw std::runtime_error("something else went wrong");
          } catch (const std::runtime_error&) {
          }
        } else {
          Communicator part = comm.split(0, rank.rank());
          rank.meet();
          CallSet calls(part.get(), 1000);
          const zbcclResult_t got = calls.run(call, 1, nullptr);
          EXPECT_TRUE(got == zbcclRemoteFailed || got == zbcclAborted)
              << CallSet::name(call) << ": " << zbcclGetErrorString(got);
          EXPECT_NE(std::string::npos, std::string(zbcclGetLastError()).find("rank 1"))
              << zbcclGetLastError();
          rank.note(CallSet::name(call));
        }
        EXPECT_LT(steady_clock::now() - start, seconds(10)) << CallSet::name(call);
        rank.meet();
      }
      comm.barrier();  // the one outside the scope goes on
      comm.destroy();
    });
  }
}

// ---- signals

std::atomic<uint64_t> interruptions{0};

// A timer that interrupts the calling thread's system calls all the time.
class Storm {
 public:
  Storm() {
    struct sigaction action = {};
    action.sa_handler = [](int) { interruptions.fetch_add(1, std::memory_order_relaxed); };
    ::sigaction(SIGALRM, &action, &before_);  // without SA_RESTART
    set(microseconds(sanitized() ? 2000 : 250));
  }
  ~Storm() {
    set(microseconds(0));
    // The last one may still be pending for another thread: ignoring it discards it.
    struct sigaction ignore = {};
    ignore.sa_handler = SIG_IGN;
    ::sigaction(SIGALRM, &ignore, nullptr);
    ::sigaction(SIGALRM, &before_, nullptr);
  }

 private:
  static void set(microseconds period) {
    itimerval timer = {};
    timer.it_interval.tv_usec = timer.it_value.tv_usec = static_cast<int>(period.count());
    ::setitimer(ITIMER_REAL, &timer, nullptr);
  }
  struct sigaction before_ = {};
};

TEST_P(Disturbance, SignalsChangeNoResult) {
  run_job(job(3), [](Rank& rank) {
    std::optional<Storm> storm;
    if (rank.mode() == Mode::kProcesses || rank.rank() == 0) storm.emplace();  // one a process
    Communicator comm = connect(rank);
    for (int round = 0; round < (sanitized() ? 3 : 15); ++round) {
      Communicator part = comm.split(0, rank.rank());
      for (const size_t count : {size_t{1}, size_t{700}, size_t{70'000}}) {
        CallSet calls(part.get(), count);
        for (int call = 0; call < CallSet::kNumCalls; ++call) {
          if (!CallSet::is_collective(call)) continue;
          ASSERT_EQ("", calls.run_checked(call, round % 3));
        }
        std::vector<int32_t> out(count, rank.rank());
        std::vector<int32_t> in(count, -1);
        Work sent = part.send_async(out.data(), count, zbcclInt32, (rank.rank() + 1) % 3);
        part.recv(in.data(), count, zbcclInt32, (rank.rank() + 2) % 3);
        sent.wait();
        for (const int32_t value : in) ASSERT_EQ((rank.rank() + 2) % 3, value);
      }
      part.destroy();
    }
    comm.destroy();
    rank.meet();
    EXPECT_GT(interruptions.load(), 20u);
  });
}

// ---- fork and exec

TEST(Child, IsRefusedEveryOperation) {
  if (thread_sanitized()) GTEST_SKIP() << "ThreadSanitizer does not follow a fork with threads";
  run_job({.ranks = 2}, [](Rank& rank) {
    Communicator comm = connect(rank);
    comm.barrier();
    float never = 0;
    zbcclWork_t pending = nullptr;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.work = &pending;
    check(zbcclRecv(&never, 1, zbcclFloat32, 1 - rank.rank(), comm.get(), &call));
    Buffer<float> block(100);
    in_child([&] {
      CallSet calls(comm.get(), 10);
      for (int each = 0; each < CallSet::kNumCalls; ++each) {
        expect_error(zbcclInvalidUsage, calls.run(each, 1 - rank.rank(), nullptr), {"fork"});
        zbcclWork_t work = nullptr;
        zbcclCall_t async = ZBCCL_CALL_INITIALIZER;
        async.work = &work;
        expect_error(zbcclInvalidUsage, calls.run(each, 1 - rank.rank(), &async), {"fork"});
        EXPECT_EQ(nullptr, work);
      }
      // The parent's work is not this process's.
      expect_error(zbcclInvalidUsage, zbcclWorkWait(pending, 0), {"fork"});
      int done = 0;
      expect_error(zbcclInvalidUsage, zbcclWorkTest(pending, &done), {"fork"});
      // The parent's block is not of this process's pool.
      expect_error(zbcclInvalidArgument, zbcclMemFree(block.data()));
      // Harmless to the parent.
      (void)zbcclCommAbort(comm.get());
      (void)zbcclCommDestroy(comm.get());
    });
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    const float one = 1;
    comm.send(&one, 1, zbcclFloat32, 1 - rank.rank());
    EXPECT_EQ(zbcclSuccess, zbcclWorkWait(pending, 0)) << zbcclGetLastError();
    EXPECT_EQ(zbcclSuccess, zbcclWorkFree(pending));
    EXPECT_EQ(1.0f, never);
    comm.destroy();
  });
}

// What `sh -c ls` shows of its open descriptors.
std::string descriptors_after_exec() {
  FILE* pipe = ::popen("ls -l /proc/self/fd | sed 's/.* -> //' | sort", "r");
  std::string text;
  char buffer[512];
  while (pipe != nullptr && std::fgets(buffer, sizeof buffer, pipe) != nullptr) {
    const std::string line = buffer;
    // Numbers of pipes and processes differ each time.
    text += line.substr(0, line.find_first_of("0123456789")) + "\n";
  }
  if (pipe != nullptr) ::pclose(pipe);
  return text;
}

TEST(Child, OfExecInheritsNoDescriptor) {
  run_job({.ranks = 2}, [](Rank& rank) {
    const std::string before = descriptors_after_exec();
    EXPECT_FALSE(before.empty());
    Communicator comm = connect(rank);
    Communicator part = comm.split(0, 0);
    Buffer<float> x(1000);
    part.all_reduce(x.span());
    EXPECT_EQ(before, descriptors_after_exec());
    // Nor does one that is started while the others work.
    std::atomic<bool> stop{false};
    std::thread starter([&] {
      for (int i = 0; i < 5; ++i) EXPECT_EQ(before, descriptors_after_exec());
      stop = true;
    });
    int32_t going = 1;
    while (going > 0) {
      Communicator more = comm.split(0, 0);
      int32_t mine = stop ? 0 : 1;
      more.all_reduce(&mine, &going, 1, zbcclInt32);
      more.destroy();
    }
    starter.join();
    part.destroy();
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
