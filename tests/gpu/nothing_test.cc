// Ranks that have nothing to send or to get, whose buffers are null: their calls are on the device
// by their stream. In every operation, on all ranks and on some, alone and beside calls that move
// something; where GPUs reach each other's memory and where they do not.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "gpu/gpu_job.h"
#include "gpu/kernels.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

using std::chrono::seconds;

constexpr size_t kCount = 3001;
constexpr int kPoison = 0xA5;

struct Named {
  const char* name;
  std::function<zbcclResult_t(zbcclComm_t comm, const zbcclCall_t* how)> call;
};

zbcclResult_t norm_of_nothing(zbcclComm_t comm, const zbcclCall_t* how) {
  zbcclRmsNorm_t norm = ZBCCL_RMS_NORM_INITIALIZER;
  norm.type = zbcclBfloat16;
  norm.hidden = 512;
  norm.epsilon = 1e-6F;
  return zbcclAllReduceRmsNorm(&norm, comm, how);
}

// Every operation without data.
std::vector<Named> operations(int ranks) {
  const std::vector<size_t> none(static_cast<size_t>(ranks), 0);
  const auto in_a_group = [](zbcclComm_t comm, const zbcclCall_t* how, int ranks_of) {
    int me = 0;
    check(zbcclCommUserRank(comm, &me));
    check(zbcclGroupStart());
    (void)zbcclSend(nullptr, 0, zbcclFloat32, (me + 1) % ranks_of, comm, how);
    (void)zbcclRecv(nullptr, 0, zbcclFloat32, (me + ranks_of - 1) % ranks_of, comm, how);
    return zbcclGroupEnd();
  };
  return {
      {"all_reduce",
       [](auto comm, auto how) {
         return zbcclAllReduce(nullptr, nullptr, 0, zbcclFloat32, zbcclSum, comm, how);
       }},
      {"reduce",
       [](auto comm, auto how) {
         return zbcclReduce(nullptr, nullptr, 0, zbcclBfloat16, zbcclMax, 1, comm, how);
       }},
      {"reduce_scatter",
       [](auto comm, auto how) {
         return zbcclReduceScatter(nullptr, nullptr, 0, zbcclInt64, zbcclSum, comm, how);
       }},
      {"all_gather",
       [](auto comm, auto how) {
         return zbcclAllGather(nullptr, nullptr, 0, zbcclUint8, comm, how);
       }},
      {"broadcast",
       [](auto comm, auto how) {
         return zbcclBroadcast(nullptr, nullptr, 0, zbcclFloat32, 1, comm, how);
       }},
      {"gather",
       [](auto comm, auto how) {
         return zbcclGather(nullptr, nullptr, 0, zbcclFloat32, 0, comm, how);
       }},
      {"scatter",
       [](auto comm, auto how) {
         return zbcclScatter(nullptr, nullptr, 0, zbcclFloat32, 0, comm, how);
       }},
      {"all_to_all",
       [](auto comm, auto how) {
         return zbcclAllToAll(nullptr, nullptr, 0, zbcclFloat16, comm, how);
       }},
      {"all_gather_v",
       [none](auto comm, auto how) {
         return zbcclAllGatherV(nullptr, nullptr, none.data(), nullptr, zbcclFloat32, comm, how);
       }},
      {"reduce_scatter_v",
       [none](auto comm, auto how) {
         return zbcclReduceScatterV(nullptr, nullptr, none.data(), zbcclFloat32, zbcclSum, comm,
                                    how);
       }},
      {"all_to_all_v",
       [none](auto comm, auto how) {
         return zbcclAllToAllV(nullptr, none.data(), nullptr, nullptr, none.data(), nullptr,
                               zbcclFloat32, comm, how);
       }},
      {"all_reduce_quantized",
       [](auto comm, auto how) {
         return zbcclAllReduceQuantized(nullptr, nullptr, 0, zbcclFloat32, zbcclInt8, comm, how);
       }},
      {"all_reduce_rms_norm", norm_of_nothing},
      {"a message in a ring", [=](auto comm, auto how) { return in_a_group(comm, how, ranks); }},
  };
}

using Where = std::tuple<Place, bool>;  // and whether GPUs are denied each other's memory

class Nothing : public testing::TestWithParam<Where> {
 protected:
  // With all ranks' communicators, which must not have failed at the end.
  static void run(const std::function<void(GpuRank&, Communicator&)>& body) {
    const auto [place, denied] = GetParam();
    GpuJob job{.ranks = ranks_at(place, 3), .place = place};
    if (denied) job.env.emplace_back("ZBCCL_DENY_REACH", "mapped");
    run_with_communicator(job, body);
  }
};
INSTANTIATE_TEST_SUITE_P(Gpu, Nothing,
                         testing::Combine(testing::Values(Place::kGpuEach, Place::kThreads,
                                                          Place::kOneGpu),
                                          testing::Bool()),
                         [](const auto& test) {
                           return std::string(place_name(std::get<0>(test.param))) +
                                  (std::get<1>(test.param) ? "Denied" : "");
                         });
#define NEED_TWO_GPUS() ZBCCL_NEED_GPUS(std::get<0>(GetParam()), 2)

// Numbers on the device, and what the host knows of them.
class Floats {
 public:
  Floats(const GpuRank& rank, size_t count)
      : count_(count),
        memory_(std::max<size_t>(count, 1) * sizeof(float), DeviceMemoryKind::kPool,
                rank.device()) {
    check_cuda(cudaMemset(memory_.data(), kPoison, count * sizeof(float)), "cudaMemset");
  }
  void* data() const { return count_ == 0 ? nullptr : memory_.data(); }
  void put(const std::vector<float>& values) const {
    if (values.empty()) return;
    check_cuda(cudaMemcpy(memory_.data(), values.data(), values.size() * sizeof(float),
                          cudaMemcpyHostToDevice),
               "cudaMemcpy");
  }
  std::vector<float> get() const {
    std::vector<float> values(count_);
    if (count_ == 0) return values;
    check_cuda(
        cudaMemcpy(values.data(), memory_.data(), count_ * sizeof(float), cudaMemcpyDeviceToHost),
        "cudaMemcpy");
    return values;
  }

 private:
  size_t count_;
  CudaMemory memory_;
};

// Element i of what rank `from` has for rank `to`.
float element(int from, int to, size_t i) {
  return static_cast<float>(1000 * from + 100 * to) + static_cast<float>(i % 97);
}

std::vector<float> block(int from, int to, size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = element(from, to, i);
  return values;
}

void append(std::vector<float>* to, const std::vector<float>& more) {
  to->insert(to->end(), more.begin(), more.end());
}

// The stream is held, so that a call that blocked until it was done would be seen.
TEST_P(Nothing, IsEnqueued) {
  NEED_TWO_GPUS();
  run([](GpuRank& rank, Communicator& comm) {
    const Pinned released(sizeof(uint32_t));
    auto* const word = reinterpret_cast<uint32_t*>(released.data());
    for (const Named& operation : operations(rank.size())) {
      rank.note(operation.name);
      *word = 0;
      launch_hold(rank.stream().get(), word);
      const zbcclCall_t how = rank.call();
      check(operation.call(comm.get(), &how));
      EXPECT_EQ(cudaErrorNotReady, cudaStreamQuery(rank.stream().get())) << operation.name;
      std::atomic_ref(*word).store(1);
      rank.settle();
      EXPECT_EQ(zbcclSuccess, comm.async_error()) << operation.name;
    }
  });
}

// The default stream has a name, and a handle of the work completes.
TEST_P(Nothing, OnTheDefaultStreamAndWithHandles) {
  NEED_TWO_GPUS();
  run([](GpuRank& rank, Communicator& comm) {
    const bool own_device = rank.place() != Place::kOneGpu;  // ranks there share the default stream
    for (const Named& operation : operations(rank.size())) {
      rank.note(operation.name);
      zbcclCall_t how = rank.call();
      if (own_device) how.stream = cudaStreamLegacy;
      zbcclWork_t handle = nullptr;
      const bool grouped = std::string(operation.name) == "a message in a ring";
      if (!grouped) how.work = &handle;
      check(operation.call(comm.get(), &how));
      if (!grouped) Work(handle).wait();
      if (own_device) check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
      rank.settle();
    }
  });
}

TEST_P(Nothing, InAGraph) {
  NEED_TWO_GPUS();
  if (std::get<1>(GetParam())) GTEST_SKIP() << "through host memory nothing is captured";
  run([](GpuRank& rank, Communicator& comm) {
    const Floats value(rank, kCount);
    value.put(std::vector<float>(kCount, 1));
    rank.settle();
    const zbcclCall_t how = rank.call();
    const CudaGraph graph(rank.stream(), [&] {
      for (const Named& operation : operations(rank.size())) {
        check(operation.call(comm.get(), &how));
      }
      check(zbcclAllReduce(value.data(), value.data(), kCount, zbcclFloat32, zbcclSum, comm.get(),
                           &how));
    });
    rank.settle();
    float expected = 1;
    for (int i = 0; i < 3; ++i) {
      graph.launch(rank.stream());
      expected *= static_cast<float>(rank.size());
    }
    rank.settle();
    EXPECT_EQ(std::vector<float>(kCount, expected), value.get());
    rank.settle();
  });
}

// Rank `idle` neither sends nor gets a thing; the others exchange blocks among them.
TEST_P(Nothing, OnOneRankOfAnExchange) {
  NEED_TWO_GPUS();
  run([](GpuRank& rank, Communicator& comm) {
    const int n = rank.size();
    const int me = rank.rank();
    for (int idle = 0; idle < n; ++idle) {
      const auto size = [&](int from, int to) -> size_t {
        return from == idle || to == idle ? 0 : kCount + static_cast<size_t>(10 * from + to);
      };
      std::vector<size_t> sends;
      std::vector<size_t> gets;
      std::vector<float> sent;
      std::vector<float> expected;
      for (int r = 0; r < n; ++r) {
        sends.push_back(size(me, r));
        gets.push_back(size(r, me));
        append(&sent, block(me, r, sends.back()));
        append(&expected, block(r, me, gets.back()));
      }
      const Floats in(rank, sent.size());
      const Floats out(rank, expected.size());
      EXPECT_EQ(me == idle, in.data() == nullptr);
      in.put(sent);
      rank.settle();
      const zbcclCall_t how = rank.call();
      check(zbcclAllToAllV(in.data(), sends.data(), nullptr, out.data(), gets.data(), nullptr,
                           zbcclFloat32, comm.get(), &how));
      rank.settle();
      EXPECT_EQ(expected, out.get()) << "rank " << idle << " has nothing";
      rank.settle();
    }
  });
}

TEST_P(Nothing, OnOneRankOfAGatherAndAScatter) {
  NEED_TWO_GPUS();
  run([](GpuRank& rank, Communicator& comm) {
    const int n = rank.size();
    const int me = rank.rank();
    for (int idle = 0; idle < n; ++idle) {
      std::vector<size_t> counts;
      std::vector<float> all;
      for (int r = 0; r < n; ++r) {
        counts.push_back(r == idle ? 0 : kCount + static_cast<size_t>(r));
        append(&all, block(r, 0, counts.back()));
      }
      const size_t mine = counts[static_cast<size_t>(me)];
      const Floats in(rank, mine);
      const Floats gathered(rank, all.size());
      const Floats piece(rank, mine);
      in.put(block(me, 0, mine));
      rank.settle();
      const zbcclCall_t how = rank.call();
      check(zbcclAllGatherV(in.data(), gathered.data(), counts.data(), nullptr, zbcclFloat32,
                            comm.get(), &how));
      check(zbcclReduceScatterV(gathered.data(), piece.data(), counts.data(), zbcclFloat32,
                                zbcclSum, comm.get(), &how));
      rank.settle();
      EXPECT_EQ(all, gathered.get()) << "rank " << idle << " has nothing";
      std::vector<float> sums = block(me, 0, mine);
      for (float& value : sums) value *= static_cast<float>(n);
      EXPECT_EQ(sums, piece.get()) << "rank " << idle << " has nothing";
      rank.settle();
    }
  });
}

// Empty messages among others: the n-th to a peer is the n-th from it.
TEST_P(Nothing, MessagesAmongOthers) {
  NEED_TWO_GPUS();
  run([](GpuRank& rank, Communicator& comm) {
    const int next = (rank.rank() + 1) % rank.size();
    const int previous = (rank.rank() + rank.size() - 1) % rank.size();
    const size_t counts[] = {0, kCount, 0, 0, 7, 2 * kCount, 0};
    std::vector<std::unique_ptr<Floats>> sent;
    std::vector<std::unique_ptr<Floats>> came;
    for (const size_t count : counts) {
      sent.push_back(std::make_unique<Floats>(rank, count));
      came.push_back(std::make_unique<Floats>(rank, count));
      sent.back()->put(block(rank.rank(), next, count));
    }
    rank.settle();
    const zbcclCall_t how = rank.call();
    Group group;
    // All sends first on one rank, all receives first on another.
    for (const bool sends : {rank.rank() % 2 == 0, rank.rank() % 2 != 0}) {
      for (size_t i = 0; i < std::size(counts); ++i) {
        check(sends ? zbcclSend(sent[i]->data(), counts[i], zbcclFloat32, next, comm.get(), &how)
                    : zbcclRecv(came[i]->data(), counts[i], zbcclFloat32, previous, comm.get(),
                                &how));
      }
    }
    group.finish();
    rank.settle();
    for (size_t i = 0; i < std::size(counts); ++i) {
      EXPECT_EQ(block(previous, rank.rank(), counts[i]), came[i]->get()) << "message " << i;
    }
    rank.settle();
  });
}

// Messages, collectives and handles in one group: messages come last, and at once.
TEST_P(Nothing, GroupsOfAllKinds) {
  NEED_TWO_GPUS();
  run([](GpuRank& rank, Communicator& comm) {
    const int next = (rank.rank() + 1) % rank.size();
    const int previous = (rank.rank() + rank.size() - 1) % rank.size();
    const Floats sum(rank, kCount);
    const Floats sent(rank, kCount);
    const Floats came(rank, kCount);
    sum.put(std::vector<float>(kCount, 1));
    sent.put(block(rank.rank(), next, kCount));
    rank.settle();
    const zbcclCall_t how = rank.call();
    zbcclCall_t noted = how;
    zbcclWork_t handle = nullptr;
    noted.work = &handle;
    Group group;
    check(zbcclSend(sent.data(), kCount, zbcclFloat32, next, comm.get(), &noted));
    check(zbcclAllReduce(sum.data(), sum.data(), kCount, zbcclFloat32, zbcclSum, comm.get(), &how));
    check(zbcclAllReduce(nullptr, nullptr, 0, zbcclFloat32, zbcclSum, comm.get(), &how));
    check(zbcclRecv(came.data(), kCount, zbcclFloat32, previous, comm.get(), &how));
    group.finish();
    Work(handle).wait();
    rank.settle();
    EXPECT_EQ(std::vector<float>(kCount, static_cast<float>(rank.size())), sum.get());
    EXPECT_EQ(block(previous, rank.rank(), kCount), came.get());
    rank.settle();
  });
}

// A rank that comes with nothing where the others bring something is found out, as on any memory.
TEST_P(Nothing, WhereOthersBringSomething) {
  NEED_TWO_GPUS();
  run([](GpuRank& rank, Communicator& comm) {
    const bool odd = rank.rank() == rank.size() - 1;
    const Floats value(rank, kCount);
    value.put(std::vector<float>(kCount, 1));
    rank.settle();
    const zbcclCall_t how = rank.call();
    check(zbcclAllReduce(odd ? nullptr : value.data(), odd ? nullptr : value.data(),
                         odd ? 0 : kCount, zbcclFloat32, zbcclSum, comm.get(), &how));
    rank.stream().wait();
    EXPECT_EQ(zbcclInvalidUsage, wait_for_error(comm, seconds(5)));
    rank.settle();
    EXPECT_EQ(std::vector<float>(kCount, 1), value.get()) << "an output was written";
    rank.settle();
    expect_error(zbcclInvalidUsage,
                 zbcclAllReduce(nullptr, nullptr, 0, zbcclFloat32, zbcclSum, comm.get(), &how),
                 {"rank"});
    check(zbcclAllReduce(value.data(), value.data(), kCount, zbcclFloat32, zbcclSum, comm.get(),
                         &how));
    rank.settle();
    EXPECT_EQ(std::vector<float>(kCount, static_cast<float>(rank.size())), value.get());
    rank.settle();
  });
}

// Without a stream, and without a GPU, it is a call on host memory, which blocks.
TEST_P(Nothing, OnTheHost) {
  NEED_TWO_GPUS();
  run([](GpuRank& rank, Communicator& comm) {
    zbcclConfig_t config = rank.config();
    config.device = ZBCCL_DEVICE_NONE;
    Communicator host_only = rank.connect(config);
    for (const Named& operation : operations(rank.size())) {
      rank.note(operation.name);
      check(operation.call(comm.get(), nullptr));
      check(operation.call(host_only.get(), nullptr));
      const zbcclCall_t how = rank.call();
      EXPECT_NE(zbcclSuccess, operation.call(host_only.get(), &how)) << operation.name;
    }
    rank.settle();
    host_only.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
