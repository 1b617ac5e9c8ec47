// What goes wrong while kernels wait for each other: a rank that does not come, one that is killed
// while graphs are replayed, an abort. Every rank is told what happened, soon, and no wait hangs.
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpu/device_check.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// Far from any deadline that is set here.
constexpr seconds kSoon{5};

double seconds_since(steady_clock::time_point begin) {
  return std::chrono::duration<double>(steady_clock::now() - begin).count();
}

zbcclResult_t next_call(GpuRank& rank, Communicator& comm, const CudaMemory& x) {
  const zbcclCall_t how = rank.call();
  return zbcclAllReduce(x.data(), x.data(), 16, zbcclFloat32, zbcclSum, comm.get(), &how);
}

class Fault : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Fault, testing::Values(Place::kGpuEach, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

TEST_P(Fault, ARankThatDoesNotCome) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 3), .place = GetParam()}, [](GpuRank& rank) {
    for (const size_t count : {size_t{64}, size_t{200'000}, size_t{3'000'000}}) {
      const CudaMemory x(count * 4, DeviceMemoryKind::kPool, rank.device());
      Communicator comm = rank.connect(rank.config(milliseconds(1200)));
      rank.settle();
      const zbcclCall_t how = rank.call();
      const int missing = rank.size() - 1;
      const auto reduce = [&] {
        return zbcclAllReduce(x.data(), x.data(), count, zbcclFloat32, zbcclSum, comm.get(), &how);
      };
      // Twice with everybody: the number of the operation is then known.
      check(reduce());
      check(reduce());
      rank.settle();
      if (rank.rank() != missing) {
        const auto begin = steady_clock::now();
        check(reduce());
        rank.stream().wait();
        EXPECT_EQ(zbcclTimeout, wait_for_error(comm, kSoon));
        EXPECT_GT(seconds_since(begin), 1.0);
        EXPECT_LT(seconds_since(begin), 1.2 + static_cast<double>(kSoon.count()));
        // Large calls are more than one operation on the device.
        expect_error(zbcclTimeout, reduce(),
                     {"rank " + std::to_string(missing), "all_reduce",
                      count < 1'000'000 ? "operation 3" : "operation "});
      }
      rank.meet();
      // The rank that comes too late does not wait for its own deadline.
      if (rank.rank() == missing) {
        const auto begin = steady_clock::now();
        const zbcclResult_t got = reduce();
        rank.stream().wait();
        const zbcclResult_t state = wait_for_error(comm, kSoon);
        EXPECT_NE(zbcclSuccess, got != zbcclSuccess ? got : state);
        EXPECT_LT(seconds_since(begin), 1.0);
      }
      rank.settle();
      comm.destroy();
      rank.settle();
    }
  });
}

// What one of two ranks calls, and the other does not, and how the error names it.
struct Waiting {
  const char* name;
  std::function<zbcclResult_t(const CudaMemory& x, const CudaMemory& y, zbcclComm_t comm,
                              const zbcclCall_t* how)>
      call;
  std::vector<std::string> words;
};

std::vector<Waiting> waits() {
  const auto reduce = [](size_t count, zbcclDataType_t type) {
    return [=](const CudaMemory& x, const CudaMemory& y, zbcclComm_t comm, const zbcclCall_t* how) {
      return zbcclAllReduce(x.data(), y.data(), count, type, zbcclSum, comm, how);
    };
  };
  const auto gather = [](size_t count) {
    return [=](const CudaMemory& x, const CudaMemory& y, zbcclComm_t comm, const zbcclCall_t* how) {
      return zbcclAllGather(x.data(), y.data(), count, zbcclFloat32, comm, how);
    };
  };
  return {
      {"small all_reduce", reduce(64, zbcclFloat32), {"all_reduce of 256 bytes of f32 by sum"}},
      {"middle all_reduce", reduce(200'000, zbcclBfloat16), {"all_reduce of 400000 bytes of bf16"}},
      {"large all_reduce", reduce(2'000'000, zbcclFloat32), {"all_reduce of 8000000 bytes of f32"}},
      {"all_reduce of integers", reduce(5000, zbcclInt32), {"all_reduce of 20000 bytes of i32"}},
      {"small all_gather", gather(100), {"all_gather of 400 bytes of f32"}},
      {"large all_gather", gather(500'000), {"all_gather of 2000000 bytes of f32"}},
      {"broadcast",
       [](auto& x, auto& y, auto comm, auto how) {
         return zbcclBroadcast(x.data(), y.data(), 100'000, zbcclUint8, 0, comm, how);
       },
       {"broadcast of 100000 bytes of u8 with root 0"}},
      {"barrier",
       [](auto&, auto&, auto comm, auto how) { return zbcclBarrier(comm, how); },
       {"barrier"}},
  };
}

// The error names the waiting rank, the one that it waits for, the operation and its number, and
// what the missing rank called last.
TEST_P(Fault, TheRecordIsComplete) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = 2, .place = GetParam()}, [](GpuRank& rank) {
    const CudaMemory x(size_t{8} << 20, DeviceMemoryKind::kPool, rank.device());
    const CudaMemory y(size_t{8} << 20, DeviceMemoryKind::kPool, rank.device());
    for (const Waiting& waiting : waits()) {
      rank.note(waiting.name);
      Communicator comm = rank.connect(rank.config(milliseconds(500)));
      rank.settle();
      const zbcclCall_t how = rank.call();
      check(zbcclAllGather(x.data(), y.data(), 7, zbcclUint16, comm.get(), &how));
      rank.settle();
      if (rank.rank() == 0) {
        check(waiting.call(x, y, comm.get(), &how));
        rank.stream().wait();
        EXPECT_EQ(zbcclTimeout, wait_for_error(comm, kSoon)) << waiting.name;
        std::vector<std::string> words = waiting.words;
        for (const char* word :
             {"rank 0 waited on its GPU for its ", " of rank 1 until the deadline", "operation 2 (",
              "it last entered operation 1 (all_gather of 14 bytes of u16"}) {
          words.emplace_back(word);
        }
        expect_error(zbcclTimeout, zbcclBarrier(comm.get(), &how), words);
      }
      rank.meet();
      if (rank.rank() == 1) {
        (void)zbcclBarrier(comm.get(), &how);
        rank.stream().wait();
        EXPECT_EQ(zbcclRemoteFailed, wait_for_error(comm, kSoon)) << waiting.name;
        expect_error(zbcclRemoteFailed, zbcclBarrier(comm.get(), &how),
                     {"rank 0 gave up waiting for this rank", "operation 2"});
      }
      rank.settle();
      comm.destroy();
      rank.settle();
    }
  });
}

// The same of messages, which are numbered for each pair and direction.
TEST_P(Fault, TheRecordOfAMessageIsComplete) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = 2, .place = GetParam()}, [](GpuRank& rank) {
    const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
    for (const bool sends : {true, false}) {
      Communicator comm = rank.connect(rank.config(milliseconds(500)));
      rank.settle();
      const zbcclCall_t how = rank.call();
      const auto message = [&] {
        return sends == (rank.rank() == 0)
                   ? zbcclSend(x.data(), 9, zbcclFloat32, 1 - rank.rank(), comm.get(), &how)
                   : zbcclRecv(x.data(), 9, zbcclFloat32, 1 - rank.rank(), comm.get(), &how);
      };
      check(message());
      rank.settle();
      if (rank.rank() == 0) {
        check(message());
        rank.stream().wait();
        EXPECT_EQ(zbcclTimeout, wait_for_error(comm, kSoon));
        expect_error(zbcclTimeout, message(),
                     {"rank 0 waited on its GPU", "of rank 1 until the deadline", "in message 2",
                      sends ? "its offer" : "its message's end"});
      }
      rank.settle();
      comm.destroy();
      rank.settle();
    }
  });
}

// A graph that is replayed after a failure drains: not every call in it waits for its deadline.
TEST_P(Fault, AGraphDrainsAfterAFailure) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = 2, .place = GetParam()}, [](GpuRank& rank) {
    CheckedCall call(rank, {Checked::kAllReduce, zbcclFloat32, 5000}, 1);
    Communicator comm = rank.connect(rank.config(milliseconds(1000)));
    rank.settle();
    {
      const CudaGraph graph(rank.stream(), [&] {
        for (int i = 0; i < 30; ++i) call.run(comm, rank.stream());
      });
      rank.settle();
      graph.launch(rank.stream());
      rank.settle();
      EXPECT_EQ(zbcclSuccess, comm.async_error());
      if (rank.rank() == 0) {
        const auto begin = steady_clock::now();
        for (int i = 0; i < 10; ++i) graph.launch(rank.stream());
        rank.stream().wait();
        EXPECT_EQ(zbcclTimeout, wait_for_error(comm, kSoon));
        EXPECT_LT(seconds_since(begin), 4.0);
      }
      rank.meet();
      if (rank.rank() == 1) {
        const auto begin = steady_clock::now();
        graph.launch(rank.stream());
        rank.stream().wait();
        EXPECT_NE(zbcclSuccess, wait_for_error(comm, kSoon));
        EXPECT_LT(seconds_since(begin), 1.0);
      }
      rank.settle();
    }
    comm.destroy();
    rank.settle();
  });
}

TEST_P(Fault, AbortFromAnotherThread) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 3), .place = GetParam()}, [](GpuRank& rank) {
    const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
    for (int aborting = 0; aborting < 2; ++aborting) {
      Communicator comm = rank.connect(rank.config(seconds(30)));
      rank.settle();
      // The last rank never comes; one of those that wait is aborted from outside.
      const int missing = rank.size() - 1;
      const bool waits = rank.rank() != missing;
      if (waits) check(next_call(rank, comm, x));
      std::thread other;
      const auto begin = steady_clock::now();
      const int aborter = aborting == 0 ? 0 : missing;
      if (rank.rank() == aborter) {
        other = std::thread([&] {
          std::this_thread::sleep_for(milliseconds(100));
          EXPECT_EQ(zbcclSuccess, zbcclCommAbort(comm.get()));
        });
      }
      rank.stream().wait();
      const zbcclResult_t state = wait_for_error(comm, kSoon);
      EXPECT_TRUE(state == zbcclAborted || state == zbcclRemoteFailed)
          << zbcclGetErrorString(state);
      EXPECT_NE(zbcclSuccess, next_call(rank, comm, x));
      EXPECT_LT(seconds_since(begin), static_cast<double>(kSoon.count()));
      if (other.joinable()) other.join();
      rank.settle();
      comm.destroy();
      rank.settle();
    }
  });
}

// The survivors of a job in which `victim` died form a communicator among themselves.
void expect_new_communicator(GpuRank& rank, int victim) {
  Rank& base = rank.base();
  const int index = base.next_index();
  zbcclUniqueId id;
  if (rank.rank() == (victim == 0 ? 1 : 0)) {
    check(zbcclGetUniqueId(&id));
    base.board().put_blob(index, &id, sizeof id);
  }
  ASSERT_TRUE(base.board().get_blob(index, &id, sizeof id, seconds(30)));
  const zbcclConfig_t config = rank.config();
  const int survivors = rank.size() - 1;
  const int place = rank.rank() - (rank.rank() > victim ? 1 : 0);
  const CudaMemory x(20'000, DeviceMemoryKind::kPool, rank.device());
  std::vector<float> values(5000, 1.0F);
  check_cuda(cudaMemcpy(x.data(), values.data(), 20'000, cudaMemcpyHostToDevice), "cudaMemcpy");
  Communicator comm = Communicator::from_id(survivors, place, id, &config);
  const zbcclCall_t how = rank.call();
  check(zbcclAllReduce(x.data(), x.data(), 5000, zbcclFloat32, zbcclSum, comm.get(), &how));
  rank.stream().wait();
  check_cuda(cudaMemcpy(values.data(), x.data(), 20'000, cudaMemcpyDeviceToHost), "cudaMemcpy");
  EXPECT_EQ(static_cast<float>(survivors), values[4999]);
  EXPECT_EQ(zbcclSuccess, comm.async_error());
  comm.destroy();
}

// `victim` kills itself while it and the others call `body` again and again. Every survivor is told
// that it was this rank, soon, and goes on without it.
void run_with_death(int victim, milliseconds life,
                    const std::function<void(GpuRank&, Communicator&)>& prepare,
                    const std::function<void(GpuRank&, Communicator&)>& body) {
  const int ranks = ranks_at(Place::kGpuEach, 4);
  run_gpu_job({.ranks = ranks, .killed = {victim}}, [&](GpuRank& rank) {
    const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
    Communicator comm = rank.connect(rank.config(seconds(40)));
    prepare(rank, comm);
    rank.settle();
    std::thread killer;
    if (rank.rank() == victim) {
      killer = std::thread([&] {
        std::this_thread::sleep_for(life);
        ::kill(::getpid(), SIGKILL);
      });
      for (;;) body(rank, comm);
    }
    const auto begin = steady_clock::now();
    try {
      while (comm.async_error() == zbcclSuccess &&
             seconds_since(begin) < static_cast<double>(3 * kSoon.count())) {
        body(rank, comm);
        rank.stream().wait();
      }
    } catch (const Error&) {
      // Told by the call itself.
    }
    rank.stream().wait();
    EXPECT_LT(seconds_since(begin), std::chrono::duration<double>(kSoon + life).count());
    EXPECT_EQ(zbcclRemoteFailed, comm.async_error());
    expect_error(zbcclRemoteFailed, next_call(rank, comm, x), {"rank " + std::to_string(victim)});
    comm.destroy();
    expect_new_communicator(rank, victim);
  });
}

class Kill : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Victim, Kill, testing::Values(0, 1));

TEST_P(Kill, DuringReplaysOfAGraph) {
  ZBCCL_NEED_GPUS(Place::kGpuEach, 2);
  std::unique_ptr<CheckedCall> call;
  std::unique_ptr<CudaGraph> graph;
  run_with_death(
      GetParam(), milliseconds(300),
      [&](GpuRank& rank, Communicator& comm) {
        call = std::make_unique<CheckedCall>(
            rank, CheckedCall::Shape{Checked::kAllReduce, zbcclBfloat16, 100'000}, 5);
        graph = std::make_unique<CudaGraph>(rank.stream(), [&] {
          for (int i = 0; i < 20; ++i) call->run(comm, rank.stream());
        });
      },
      [&](GpuRank& rank, Communicator&) { graph->launch(rank.stream()); });
}

TEST_P(Kill, DuringLargeCalls) {
  ZBCCL_NEED_GPUS(Place::kGpuEach, 2);
  std::unique_ptr<CheckedCall> reduce;
  std::unique_ptr<CheckedCall> gather;
  run_with_death(
      GetParam(), milliseconds(300),
      [&](GpuRank& rank, Communicator&) {
        reduce = std::make_unique<CheckedCall>(
            rank, CheckedCall::Shape{Checked::kAllReduce, zbcclFloat32, size_t{8} << 20}, 6);
        gather = std::make_unique<CheckedCall>(
            rank, CheckedCall::Shape{Checked::kAllGather, zbcclFloat32, size_t{4} << 20}, 7);
      },
      [&](GpuRank& rank, Communicator& comm) {
        reduce->run(comm, rank.stream());
        gather->run(comm, rank.stream());
      });
}

TEST_P(Kill, WhileTheOthersWaitForIt) {
  ZBCCL_NEED_GPUS(Place::kGpuEach, 2);
  const int victim = GetParam();
  std::unique_ptr<CheckedCall> call;
  run_with_death(
      victim, milliseconds(500),
      [&](GpuRank& rank, Communicator&) {
        call = std::make_unique<CheckedCall>(
            rank, CheckedCall::Shape{Checked::kAllReduce, zbcclFloat32, 1000}, 8);
      },
      [&](GpuRank& rank, Communicator& comm) {
        if (rank.rank() == victim) return std::this_thread::sleep_for(seconds(60));
        call->run(comm, rank.stream());
      });
}

// The survivors call nothing but the graph: before their hosts have noticed, or after.
class Replay : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Noticed, Replay, testing::Bool());

TEST_P(Replay, AfterAPeerHasDied) {
  ZBCCL_NEED_GPUS(Place::kGpuEach, 2);
  const int ranks = ranks_at(Place::kGpuEach, 4);
  const int victim = ranks - 1;
  const bool noticed = GetParam();
  run_gpu_job({.ranks = ranks, .killed = {victim}}, [&](GpuRank& rank) {
    CheckedCall reduce(rank, {Checked::kAllReduce, zbcclBfloat16, 3000}, 51);
    CheckedCall large(rank, {Checked::kAllReduce, zbcclFloat32, 1'500'000}, 52);
    CheckedCall gather(rank, {Checked::kAllGather, zbcclFloat32, 200'000}, 53);
    CheckedCall exchange(rank, {Checked::kAllToAll, zbcclFloat32, 100'000, true}, 54);
    const CudaMemory x(4096, DeviceMemoryKind::kPool, rank.device());
    Communicator comm = rank.connect(rank.config(seconds(60)));
    rank.settle();
    {
      const CudaGraph graph(rank.stream(), [&] {
        for (CheckedCall* call : {&reduce, &large, &gather, &exchange}) {
          call->round(comm, rank.stream());
        }
      });
      rank.settle();
      for (int i = 0; i < 5; ++i) graph.launch(rank.stream());
      for (CheckedCall* call : {&reduce, &large, &gather, &exchange}) {
        EXPECT_EQ(0U, call->wrong(rank.stream()));
      }
      rank.settle();
      if (rank.rank() == victim) ::kill(::getpid(), SIGKILL);
      if (noticed) {
        EXPECT_EQ(zbcclRemoteFailed, wait_for_error(comm, kSoon));
      }
      const auto begin = steady_clock::now();
      for (int i = 0; i < 20; ++i) graph.launch(rank.stream());
      rank.stream().wait();
      EXPECT_EQ(zbcclRemoteFailed, wait_for_error(comm, kSoon));
      EXPECT_LT(seconds_since(begin), static_cast<double>(2 * kSoon.count()));
    }
    expect_error(zbcclRemoteFailed, next_call(rank, comm, x), {"rank " + std::to_string(victim)});
    comm.destroy();
    expect_new_communicator(rank, victim);
  });
}

}  // namespace
}  // namespace zbccl::test
