// The library with NCCL's interface on GPUs: one thread that drives all of them, streams, graphs,
// host memory that is ordered by a stream, aborts.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "functions.h"
#include "gpu/gpu_job.h"
#include "gpu/kernels.h"

namespace zbccl::test {
namespace {

void check(ncclResult_t result) {
  if (result == ncclSuccess) return;
  throw std::runtime_error(std::string(ncclGetErrorString(result)) + ": " +
                           ncclGetLastError(nullptr));
}

// One GPU of a thread that drives several.
struct Gpu {
  explicit Gpu(int which) : device(which) {
    use();
    check_cuda(cudaFree(nullptr), "cudaFree");
    stream = std::make_unique<CudaStream>();
  }
  void use() const { check_cuda(cudaSetDevice(device), "cudaSetDevice"); }

  int device;
  ncclComm_t comm = nullptr;
  std::unique_ptr<CudaStream> stream;
};

// Numbers in a GPU's memory.
class Numbers {
 public:
  Numbers(const Gpu& gpu, size_t count, DeviceMemoryKind kind = DeviceMemoryKind::kPlain)
      : gpu_(gpu), count_(count) {
    gpu.use();
    memory_ = std::make_unique<CudaMemory>(count * sizeof(int32_t), kind, gpu.device);
  }
  int32_t* data() const { return reinterpret_cast<int32_t*>(memory_->data()); }
  size_t bytes() const { return count_ * sizeof(int32_t); }
  void put(const std::vector<int32_t>& values) const {
    gpu_.use();
    check_cuda(cudaMemcpy(data(), values.data(), bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  // Once the stream is idle.
  std::vector<int32_t> get() const {
    gpu_.use();
    gpu_.stream->wait();
    std::vector<int32_t> values(count_);
    check_cuda(cudaMemcpy(values.data(), data(), bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }

 private:
  const Gpu& gpu_;
  size_t count_;
  std::unique_ptr<CudaMemory> memory_;
};

// Element i of GPU g's input.
int32_t element(int g, size_t i) { return static_cast<int32_t>(i * 7 + 1) * (g + 1); }

std::vector<int32_t> input(int g, size_t count) {
  std::vector<int32_t> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = element(g, i);
  return values;
}

std::vector<int32_t> sum(int gpus, size_t count) {
  std::vector<int32_t> values(count, 0);
  for (int g = 0; g < gpus; ++g) {
    for (size_t i = 0; i < count; ++i) values[i] += element(g, i);
  }
  return values;
}

// A child's only thread, with all GPUs up to four and a communicator on each.
void drive(const std::function<void(std::vector<Gpu>&)>& body) {
  const int count = ranks_at(Place::kThreads, 4);
  run_job({.ranks = 1, .deadline = std::chrono::seconds(90)}, [&](Rank&) {
    std::vector<Gpu> gpus;
    for (int g = 0; g < count; ++g) gpus.emplace_back(g);
    ncclUniqueId id;
    check(ncclGetUniqueId(&id));
    check(ncclGroupStart());
    for (Gpu& gpu : gpus) {
      gpu.use();
      check(ncclCommInitRank(&gpu.comm, count, id, gpu.device));
    }
    check(ncclGroupEnd());
    body(gpus);
    for (Gpu& gpu : gpus) {
      gpu.stream->wait();
      ncclResult_t state = ncclInternalError;
      check(ncclCommGetAsyncError(gpu.comm, &state));
      EXPECT_EQ(ncclSuccess, state);
      check(ncclCommDestroy(gpu.comm));
    }
  });
}

// Every test here has the same need.
class Nccl : public testing::Test {
 protected:
  void SetUp() override { ZBCCL_NEED_GPUS(Place::kThreads, 2); }
};

TEST_F(Nccl, OneThreadDrivesAll) {
  drive([](std::vector<Gpu>& gpus) {
    const int n = static_cast<int>(gpus.size());
    for (const size_t count : {size_t{1}, size_t{1000}, size_t{65'537}, size_t{4'000'003}}) {
      std::vector<Numbers> ins;
      std::vector<Numbers> outs;
      for (const Gpu& gpu : gpus) {
        int device = -1;
        check(ncclCommCuDevice(gpu.comm, &device));
        EXPECT_EQ(gpu.device, device);
        ins.emplace_back(gpu, count);
        outs.emplace_back(gpu, count * gpus.size());
        ins.back().put(input(gpu.device, count));
      }
      check(ncclGroupStart());
      for (size_t g = 0; g < gpus.size(); ++g) {
        check(ncclAllReduce(ins[g].data(), outs[g].data(), count, ncclInt32, ncclSum, gpus[g].comm,
                            gpus[g].stream->get()));
      }
      check(ncclGroupEnd());
      for (const Numbers& out : outs) {
        std::vector<int32_t> got = out.get();
        got.resize(count);
        EXPECT_EQ(sum(n, count), got);
      }
      check(ncclGroupStart());
      for (size_t g = 0; g < gpus.size(); ++g) {
        check(ncclAllGather(ins[g].data(), outs[g].data(), count, ncclInt32, gpus[g].comm,
                            gpus[g].stream->get()));
      }
      check(ncclGroupEnd());
      std::vector<int32_t> all;
      for (int g = 0; g < n; ++g) {
        const auto one = input(g, count);
        all.insert(all.end(), one.begin(), one.end());
      }
      for (const Numbers& out : outs) EXPECT_EQ(all, out.get());
    }
  });
}

// Many collectives and messages of each communicator in one group.
TEST_F(Nccl, LongGroups) {
  drive([](std::vector<Gpu>& gpus) {
    constexpr size_t kCount = 2000;
    constexpr int kCalls = 200;
    const size_t n = gpus.size();
    std::vector<Numbers> values;
    std::vector<Numbers> came;
    for (const Gpu& gpu : gpus) {
      values.emplace_back(gpu, kCount);
      came.emplace_back(gpu, kCount);
      values.back().put(std::vector<int32_t>(kCount, 1));
      came.back().put(std::vector<int32_t>(kCount, -1));
    }
    check(ncclGroupStart());
    for (size_t g = 0; g < n; ++g) {
      cudaStream_t stream = gpus[g].stream->get();
      for (int i = 0; i < kCalls; ++i) {
        check(ncclAllReduce(values[g].data(), values[g].data(), kCount, ncclInt32, ncclMax,
                            gpus[g].comm, stream));
      }
      const int next = static_cast<int>((g + 1) % n);
      const int previous = static_cast<int>((g + n - 1) % n);
      check(ncclSend(values[g].data(), kCount, ncclInt32, next, gpus[g].comm, stream));
      check(ncclRecv(came[g].data(), kCount, ncclInt32, previous, gpus[g].comm, stream));
    }
    check(ncclGroupEnd());
    for (const Numbers& it : came) EXPECT_EQ(std::vector<int32_t>(kCount, 1), it.get());
  });
}

// Messages of one group on two streams: what the second stream does before and after is in order
// with them.
TEST_F(Nccl, MessagesOnTwoStreams) {
  drive([](std::vector<Gpu>& gpus) {
    constexpr size_t kCount = 100'000;
    const size_t n = gpus.size();
    std::vector<Numbers> sent;
    std::vector<Numbers> came;
    std::vector<Numbers> copies;
    std::vector<CudaStream> others;
    for (const Gpu& gpu : gpus) {
      sent.emplace_back(gpu, kCount);
      came.emplace_back(gpu, kCount);
      copies.emplace_back(gpu, kCount);
      sent.back().put(std::vector<int32_t>(kCount, 0));
      came.back().put(std::vector<int32_t>(kCount, -1));
      others.emplace_back();
    }
    for (size_t g = 0; g < n; ++g) {
      gpus[g].use();
      launch_delay(others[g].get(), 20'000);
      check_cuda(cudaMemsetAsync(sent[g].data(), 0x11, sent[g].bytes(), others[g].get()), "memset");
    }
    check(ncclGroupStart());
    for (size_t g = 0; g < n; ++g) {
      const int next = static_cast<int>((g + 1) % n);
      const int previous = static_cast<int>((g + n - 1) % n);
      check(ncclRecv(came[g].data(), kCount, ncclInt32, previous, gpus[g].comm,
                     gpus[g].stream->get()));
      check(ncclSend(sent[g].data(), kCount, ncclInt32, next, gpus[g].comm, others[g].get()));
    }
    check(ncclGroupEnd());
    for (size_t g = 0; g < n; ++g) {
      gpus[g].use();
      check_cuda(cudaMemcpyAsync(copies[g].data(), came[g].data(), came[g].bytes(),
                                 cudaMemcpyDeviceToDevice, others[g].get()),
                 "copy");
      others[g].wait();
      EXPECT_EQ(std::vector<int32_t>(kCount, 0x11111111), copies[g].get());
    }
  });
}

// NCCL reads pinned host memory in its stream's order; here the call waits for the stream.
TEST_F(Nccl, HostMemoryWaitsForItsStream) {
  drive([](std::vector<Gpu>& gpus) {
    constexpr size_t kCount = 5000;
    for (const bool grouped : {true, false}) {
      std::vector<std::unique_ptr<Pinned>> values;
      for (const Gpu& gpu : gpus) {
        gpu.use();
        values.push_back(std::make_unique<Pinned>(kCount * sizeof(int32_t)));
        std::fill_n(values.back()->data(), kCount * sizeof(int32_t), std::byte{0});
        launch_delay(gpu.stream->get(), 20'000);
        check_cuda(cudaMemsetAsync(values.back()->data(), 0x22, kCount * sizeof(int32_t),
                                   gpu.stream->get()),
                   "memset");
      }
      const auto call = [&](const Gpu& gpu) {
        auto* const at = values[static_cast<size_t>(gpu.device)]->data();
        check(ncclAllReduce(at, at, kCount, ncclInt32, ncclMax, gpu.comm, gpu.stream->get()));
      };
      if (grouped) {
        check(ncclGroupStart());
        for (const Gpu& gpu : gpus) call(gpu);
        check(ncclGroupEnd());
      } else {
        std::vector<std::thread> threads;
        for (const Gpu& gpu : gpus) threads.emplace_back([&] { call(gpu); });
        for (std::thread& thread : threads) thread.join();
      }
      for (const auto& it : values) {
        const auto* const got = reinterpret_cast<const int32_t*>(it->data());
        EXPECT_EQ(static_cast<std::ptrdiff_t>(kCount), std::count(got, got + kCount, 0x22222222));
      }
    }
  });
}

TEST_F(Nccl, DefaultStream) {
  drive([](std::vector<Gpu>& gpus) {
    constexpr size_t kCount = 10'000;
    std::vector<Numbers> values;
    for (const Gpu& gpu : gpus) {
      values.emplace_back(gpu, kCount);
      gpu.use();
      launch_delay(nullptr, 10'000);
      check_cuda(cudaMemsetAsync(values.back().data(), 1, values.back().bytes(), nullptr),
                 "memset");
    }
    check(ncclGroupStart());
    for (size_t g = 0; g < gpus.size(); ++g) {
      check(ncclAllReduce(values[g].data(), values[g].data(), kCount, ncclInt32, ncclMin,
                          gpus[g].comm, nullptr));
    }
    check(ncclGroupEnd());
    for (size_t g = 0; g < gpus.size(); ++g) {
      EXPECT_EQ(std::vector<int32_t>(kCount, 0x01010101), values[g].get());
    }
  });
}

// All GPUs' streams captured by the one thread, each in a graph of its own, in every mode.
TEST_F(Nccl, Graphs) {
  drive([](std::vector<Gpu>& gpus) {
    constexpr size_t kCount = 30'000;
    constexpr int kReplays = 50;
    std::vector<Numbers> values;
    for (const Gpu& gpu : gpus) values.emplace_back(gpu, kCount);
    const auto call_all = [&] {
      check(ncclGroupStart());
      for (size_t g = 0; g < gpus.size(); ++g) {
        check(ncclAllReduce(values[g].data(), values[g].data(), kCount, ncclInt32, ncclMax,
                            gpus[g].comm, gpus[g].stream->get()));
      }
      check(ncclGroupEnd());
    };
    for (const Numbers& it : values) it.put(std::vector<int32_t>(kCount, 0));
    call_all();
    for (const Gpu& gpu : gpus) gpu.stream->wait();
    for (const auto mode : {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal,
                            cudaStreamCaptureModeRelaxed}) {
      for (const Gpu& gpu : gpus) {
        gpu.use();
        check_cuda(cudaStreamBeginCapture(gpu.stream->get(), mode), "capture");
      }
      call_all();
      // While one is still being captured no other may be instantiated.
      std::vector<cudaGraph_t> graphs(gpus.size());
      for (size_t g = 0; g < gpus.size(); ++g) {
        gpus[g].use();
        check_cuda(cudaStreamEndCapture(gpus[g].stream->get(), &graphs[g]), "end of capture");
      }
      std::vector<cudaGraphExec_t> executables(gpus.size());
      for (size_t g = 0; g < gpus.size(); ++g) {
        gpus[g].use();
        check_cuda(cudaGraphInstantiate(&executables[g], graphs[g], 0), "instantiate");
        check_cuda(cudaGraphDestroy(graphs[g]), "cudaGraphDestroy");
      }
      for (int i = 1; i <= kReplays; ++i) {
        for (size_t g = 0; g < gpus.size(); ++g) {
          gpus[g].use();
          const int mine = i + static_cast<int>(g);
          values[g].put(std::vector<int32_t>(kCount, mine));
          check_cuda(cudaGraphLaunch(executables[g], gpus[g].stream->get()), "launch");
        }
        const int most = i + static_cast<int>(gpus.size()) - 1;
        for (const Numbers& it : values) EXPECT_EQ(std::vector<int32_t>(kCount, most), it.get());
      }
      for (cudaGraphExec_t graph : executables) check_cuda(cudaGraphExecDestroy(graph), "destroy");
    }
  });
}

// A call on host memory cannot be in a graph; the capture is not spoiled by asking.
TEST_F(Nccl, HostMemoryIsNotCaptured) {
  drive([](std::vector<Gpu>& gpus) {
    const Gpu& gpu = gpus.front();
    gpu.use();
    const Pinned value(64);
    check_cuda(cudaStreamBeginCapture(gpu.stream->get(), cudaStreamCaptureModeThreadLocal),
               "capture");
    EXPECT_EQ(ncclInvalidUsage, ncclAllReduce(value.data(), value.data(), 4, ncclInt32, ncclSum,
                                              gpu.comm, gpu.stream->get()));
    EXPECT_NE(std::string::npos, std::string(ncclGetLastError(nullptr)).find("captured"));
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(gpu.stream->get(), &graph), "end of capture");
    check_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
  });
}

TEST_F(Nccl, MemoryOfThePoolAndWindows) {
  drive([](std::vector<Gpu>& gpus) {
    constexpr size_t kCount = 1 << 20;
    std::vector<void*> blocks(gpus.size());
    std::vector<ncclWindow_t> windows(gpus.size());
    std::vector<void*> handles(gpus.size());
    for (size_t g = 0; g < gpus.size(); ++g) {
      gpus[g].use();
      check(ncclMemAlloc(&blocks[g], kCount * sizeof(int32_t)));
      const auto values = input(gpus[g].device, kCount);
      check_cuda(cudaMemcpy(blocks[g], values.data(), kCount * 4, cudaMemcpyHostToDevice), "copy");
      check(ncclCommRegister(gpus[g].comm, blocks[g], kCount * 4, &handles[g]));
    }
    check(ncclGroupStart());
    for (size_t g = 0; g < gpus.size(); ++g) {
      check(ncclCommWindowRegister(gpus[g].comm, blocks[g], kCount * 4, &windows[g],
                                   NCCL_WIN_COLL_SYMMETRIC));
    }
    check(ncclGroupEnd());
    check(ncclGroupStart());
    for (size_t g = 0; g < gpus.size(); ++g) {
      check(ncclAllReduce(blocks[g], blocks[g], kCount, ncclInt32, ncclSum, gpus[g].comm,
                          gpus[g].stream->get()));
    }
    check(ncclGroupEnd());
    for (size_t g = 0; g < gpus.size(); ++g) {
      gpus[g].use();
      gpus[g].stream->wait();
      std::vector<int32_t> got(kCount);
      check_cuda(cudaMemcpy(got.data(), blocks[g], kCount * 4, cudaMemcpyDeviceToHost), "copy");
      EXPECT_EQ(sum(static_cast<int>(gpus.size()), kCount), got);
      check(ncclCommWindowDeregister(gpus[g].comm, windows[g]));
      check(ncclCommDeregister(gpus[g].comm, handles[g]));
      check(ncclMemFree(blocks[g]));
    }
    zbcclMemReport_t report = {sizeof report};
    ASSERT_EQ(zbcclSuccess, zbcclMemGetReport(&report));
    EXPECT_EQ(0U, report.staged_bytes);
  });
}

// Small integers times powers of two: each product and each sum is exact.
template <typename T>
void expect_products(std::vector<Gpu>& gpus, ncclDataType_t type, T factor,
                     const std::function<T(float)>& made, bool on_gpu) {
  constexpr size_t kCount = 10'000;
  const size_t n = gpus.size();
  std::vector<std::unique_ptr<CudaMemory>> ins;
  std::vector<std::unique_ptr<CudaMemory>> outs;
  std::vector<std::unique_ptr<CudaMemory>> pieces;
  std::vector<std::unique_ptr<CudaMemory>> factors;
  std::vector<ncclRedOp_t> ops(n);
  const auto small = [](size_t g, size_t i) { return static_cast<float>((i + g) % 3); };
  const auto download = [&](const Gpu& gpu, const CudaMemory& from, size_t count) {
    gpu.use();
    gpu.stream->wait();
    std::vector<T> values(count);
    check_cuda(cudaMemcpy(values.data(), from.data(), count * sizeof(T), cudaMemcpyDeviceToHost),
               "cudaMemcpy");
    return values;
  };
  for (size_t g = 0; g < n; ++g) {
    gpus[g].use();
    const auto memory = [&](size_t count) {
      return std::make_unique<CudaMemory>(count * sizeof(T), DeviceMemoryKind::kPlain,
                                          gpus[g].device);
    };
    std::vector<T> values(n * kCount);
    for (size_t i = 0; i < values.size(); ++i) values[i] = made(small(g, i));
    ins.push_back(memory(n * kCount));
    outs.push_back(memory(n * kCount));
    pieces.push_back(memory(kCount));
    factors.push_back(memory(1));
    check_cuda(cudaMemcpy(ins[g]->data(), values.data(), values.size() * sizeof(T),
                          cudaMemcpyHostToDevice),
               "cudaMemcpy");
    check_cuda(cudaMemcpy(factors[g]->data(), &factor, sizeof factor, cudaMemcpyHostToDevice),
               "cudaMemcpy");
    check(ncclRedOpCreatePreMulSum(
        &ops[g], on_gpu ? static_cast<void*>(factors[g]->data()) : &factor, type,
        on_gpu ? ncclScalarDevice : ncclScalarHostImmediate, gpus[g].comm));
  }
  check(ncclGroupStart());
  for (size_t g = 0; g < n; ++g) {
    cudaStream_t stream = gpus[g].stream->get();
    check(ncclAllReduce(ins[g]->data(), outs[g]->data(), n * kCount, type, ops[g], gpus[g].comm,
                        stream));
    check(ncclReduceScatter(ins[g]->data(), pieces[g]->data(), kCount, type, ops[g], gpus[g].comm,
                            stream));
  }
  check(ncclGroupEnd());
  std::vector<T> want(n * kCount);
  const auto total = [&](size_t i) {
    float sum = 0;
    for (size_t g = 0; g < n; ++g) sum += small(g, i);
    return sum;
  };
  for (size_t i = 0; i < want.size(); ++i) want[i] = made(2 * total(i));
  for (size_t g = 0; g < n; ++g) {
    EXPECT_EQ(want, download(gpus[g], *outs[g], n * kCount));
    const auto at = want.begin() + static_cast<std::ptrdiff_t>(g * kCount);
    EXPECT_EQ(std::vector<T>(at, at + kCount), download(gpus[g], *pieces[g], kCount));
    check(ncclRedOpDestroy(ops[g], gpus[g].comm));
  }
}

TEST_F(Nccl, OperatorsThatAreMade) {
  drive([](std::vector<Gpu>& gpus) {
    // The upper half of an f32 is a bf16.
    const auto narrow = [](float value) {
      return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    };
    for (const bool on_gpu : {false, true}) {
      expect_products<float>(
          gpus, ncclFloat32, 2, [](float v) { return v; }, on_gpu);
      expect_products<int64_t>(
          gpus, ncclInt64, 2, [](float v) { return static_cast<int64_t>(v); }, on_gpu);
      expect_products<uint16_t>(gpus, ncclBfloat16, narrow(2), narrow, on_gpu);
    }
  });
}

// The kernel that waits for a rank which does not come ends, and so does the other rank's
// communicator.
TEST_F(Nccl, AbortEndsKernels) {
  run_gpu_job({.ranks = 2, .place = Place::kGpuEach}, [](GpuRank& rank) {
    const int index = rank.base().next_index();
    ncclUniqueId id;
    if (rank.rank() == 0) {
      check(ncclGetUniqueId(&id));
      rank.base().board().put_blob(index, &id, sizeof id);
    } else {
      ASSERT_TRUE(rank.base().board().get_blob(index, &id, sizeof id, std::chrono::seconds(30)));
    }
    ncclComm_t comm = nullptr;
    check(ncclCommInitRank(&comm, 2, id, rank.rank()));
    const CudaMemory value(1 << 20, DeviceMemoryKind::kPlain, rank.device());
    const auto call = [&] {
      check(ncclAllReduce(value.data(), value.data(), 1 << 18, ncclInt32, ncclSum, comm,
                          rank.stream().get()));
    };
    call();
    rank.stream().wait();
    rank.meet();
    if (rank.rank() == 0) {
      call();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      check(ncclCommAbort(comm));
      rank.stream().wait();
    } else {
      ncclResult_t state = ncclSuccess;
      while (state == ncclSuccess) check(ncclCommGetAsyncError(comm, &state));
      EXPECT_EQ(ncclRemoteError, state);
      check(ncclCommAbort(comm));
    }
    rank.meet();
  });
}

}  // namespace
}  // namespace zbccl::test
