// GPU memory shared between processes and between ranks of one process, on real GPUs: what one rank
// writes through its table is what the owner finds.
#include <signal.h>

#include <thread>
#include <vector>

#include "gpu/memory_node.h"

extern "C" void* zbcclTorchAlloc(ssize_t size, int device, void* stream);
extern "C" void zbcclTorchFree(void* block, ssize_t size, int device, void* stream);

namespace zbccl::cuda {
namespace {

INSTANTIATE_TEST_SUITE_P(Places, GpuMemory,
                         testing::Values(Place::kProcesses, Place::kThreads, Place::kOneGpu),
                         place_name);

TEST_P(GpuMemory, EveryRankReachesEveryOther) {
  const Gpus gpus = gpus_for(GetParam(), 8);
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    std::byte* block = node.take(64 * kMiB);
    node.share(0);
    node.write_all(block, 4 * kMiB);
    node.write_all(block + 4096, 4096);
  });
}

TEST_P(GpuMemory, ProbesWhatItReaches) {
  const Gpus gpus = gpus_for(GetParam(), 8);
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    node.share(0);
    const auto start = Clock::now();
    for (size_t r = 0; r < node.peers.size(); ++r) {
      const Reach reach = require(probe_reach(*node.peers[r], *node.remotes[r], soon()));
      EXPECT_TRUE(reach.mapped) << "rank " << rank.rank() << " to " << r << ": " << reach.why;
    }
    const auto time = std::chrono::duration<double, std::milli>(Clock::now() - start);
    if (rank.rank() == 0) std::printf("%d probes: %.2f ms\n", rank.size(), time.count());
    rank.meet();
  });
}

TEST_P(GpuMemory, GrowsAfterItWasShared) {
  const Gpus gpus = gpus_for(GetParam());
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    std::vector<std::byte*> blocks;
    for (int step = 0; step < 6; ++step) {
      blocks.push_back(node.take(kMiB << ((step + rank.rank()) % 5)));
      node.share(0);
      node.write_all(blocks.back(), 64 * 1024);
      if (step % 3 == 2) {  // freed and used again
        require(node.pool->free(blocks.front()));
        blocks.erase(blocks.begin());
      }
    }
    for (std::byte* block : blocks) node.write_all(block, 4096);
    for (std::byte* block : blocks) require(node.pool->free(block));
    rank.meet();
  });
}

// Nothing that maps waits for a kernel that runs.
TEST_P(GpuMemory, MapsWhileKernelsSpin) {
  const Gpus gpus = gpus_for(GetParam());
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    std::byte* block = node.take(kMiB);
    node.share(0);
    node.write_all(block, 4096);
    void* tensor = nullptr;
    CHECK_CUDA(cudaMalloc(&tensor, 4 * kMiB));
    rank.meet();
    Spinner spinner;
    rank.meet();
    const auto start = Clock::now();
    const auto note = [&](const char* what) {
      const auto time = std::chrono::duration_cast<Milliseconds>(Clock::now() - start);
      if (rank.rank() == 0) std::printf("%s: %lld ms\n", what, (long long)time.count());
      EXPECT_TRUE(spinner.running()) << what;
    };
    std::byte* grown = node.take(128 * kMiB);
    note("allocated");
    node.share(0);
    note("shared");
    node.write_all(grown, 64 * 1024);
    note("written");
    require(node.pool->add_foreign(tensor, 4 * kMiB));
    const Location at = *node.pool->locate(tensor, 1);
    node.share(at.segment);
    note("registered memory shared");
    node.write_all(static_cast<std::byte*>(tensor), 64 * 1024);
    note("registered memory written");
    // Unmapping may wait for kernels, and then waits for these: nothing else does.
    const Status dropped = node.pool->remove_foreign(tensor, Deadline::after(Milliseconds(2000)));
    std::printf("rank %d: unmapping beside a running kernel: %s\n", rank.rank(),
                dropped.ok() ? "done" : dropped.to_string().c_str());
    EXPECT_TRUE(dropped.ok() || dropped.code() == Code::kTimeout) << dropped.to_string();
    note("unmapping asked for");
    spinner.release();
    rank.meet();
    std::byte* last = node.take(16 * kMiB);
    node.share(0);
    node.write_all(last, 64 * 1024);
  });
}

// A host that waits for a kernel, in one of the ways there are: a peer's new memory is mapped
// meanwhile.
enum class Waits { kForTheStream, kCopyingHere, kCopyingThere };

void map_while_a_host(const Gpus& gpus, Waits waits, bool foreign) {
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    node.share(0);
    constexpr size_t kBytes = 64 * kMiB;
    void* tensor = nullptr;
    CHECK_CUDA(cudaMalloc(&tensor, kBytes));
    rank.meet();
    if (rank.rank() == 1) {
      Spinner spinner;
      std::vector<std::byte> pageable(kBytes);
      std::thread host([&] {
        (void)cudaSetDevice(node.device);
        cudaStream_t stream = spinner.stream();
        if (waits == Waits::kForTheStream) (void)cudaStreamSynchronize(stream);
        if (waits == Waits::kCopyingHere) {
          (void)cudaMemcpyAsync(pageable.data(), tensor, kBytes, cudaMemcpyDeviceToHost, stream);
        }
        if (waits == Waits::kCopyingThere) {
          (void)cudaMemcpyAsync(tensor, pageable.data(), kBytes, cudaMemcpyHostToDevice, stream);
        }
      });
      std::this_thread::sleep_for(Milliseconds(200));
      rank.meet();
      rank.meet();
      spinner.release();
      host.join();
      return;
    }
    rank.meet();
    uint32_t segment = 0;
    if (foreign) {
      require(node.pool->add_foreign(tensor, kBytes));
      segment = node.pool->locate(tensor, 1)->segment;
    } else {
      (void)node.take(128 * kMiB);
    }
    const auto start = Clock::now();
    const Status shared =
        node.pool->share(segment, node.peers, Deadline::after(Milliseconds(3000)));
    EXPECT_TRUE(shared.ok()) << shared.to_string();
    EXPECT_LT(Clock::now() - start, Milliseconds(1000));
    rank.meet();
  });
}

TEST_P(GpuMemory, MapsWhileAHostWaits) {
  if (GetParam() != Place::kProcesses) GTEST_SKIP() << "of processes";
  const Gpus gpus = gpus_for(GetParam(), 2);
  NEED_GPUS(gpus);
  for (const Waits waits : {Waits::kForTheStream, Waits::kCopyingHere, Waits::kCopyingThere}) {
    for (const bool foreign : {false, true}) map_while_a_host(gpus, waits, foreign);
  }
}

// As above, seen from a rank that opens, and one that joins late.
TEST_P(GpuMemory, OpensWhileKernelsSpin) {
  const Gpus gpus = gpus_for(GetParam());
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    CHECK_CUDA(cudaSetDevice(gpus.place == Place::kOneGpu ? 0 : rank.rank()));
    CHECK_CUDA(cudaFree(nullptr));
    test::load_kernels();
    rank.meet();
    Spinner spinner;
    rank.meet();
    Node node(rank, gpus.place);
    std::byte* block = node.take(4 * kMiB);
    node.share(0);
    EXPECT_TRUE(spinner.running());
    spinner.release();
    node.write_all(block, 64 * 1024);
  });
}

TEST_P(GpuMemory, GrowsAndSharesDuringACapture) {
  const Gpus gpus = gpus_for(GetParam());
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    std::byte* block = node.take(kMiB);
    node.share(0);
    void* tensor = nullptr;
    CHECK_CUDA(cudaMalloc(&tensor, 4 * kMiB));
    rank.meet();
    CHECK_CUDA(cudaStreamBeginCapture(node.stream, cudaStreamCaptureModeGlobal));
    rank.meet();  // all of them capture while they map each other's memory
    std::byte* grown = node.take(64 * kMiB);
    node.share(0);
    require(node.pool->add_foreign(tensor, 4 * kMiB));
    const Location at = *node.pool->locate(tensor, 1);
    node.share(at.segment);
    require(node.pool->free(block));
    void* pytorch = zbcclTorchAlloc(2 * kMiB, node.device, node.stream);
    EXPECT_NE(pytorch, nullptr);
    zbcclTorchFree(pytorch, 2 * kMiB, node.device, node.stream);
    rank.meet();
    cudaGraph_t graph = nullptr;
    CHECK_CUDA(cudaStreamEndCapture(node.stream, &graph));
    CHECK_CUDA(cudaGraphDestroy(graph));
    node.write_all(grown, 64 * 1024);
    node.write_all(static_cast<std::byte*>(tensor), 64 * 1024);
    require(node.pool->remove_foreign(tensor, soon()));
    rank.meet();
    CHECK_CUDA(cudaFree(tensor));
  });
}

TEST_P(GpuMemory, ManyPushesAtOnce) {
  const Gpus gpus = gpus_for(GetParam());
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 8; ++i) {
          node.take(2 * kMiB);
          const Status shared = node.pool->share(0, node.peers, soon());
          EXPECT_TRUE(shared.ok()) << shared.to_string();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    node.write_all(node.take(kMiB), 4096);
  });
}

TEST_P(GpuMemory, SharesInTimeThatInitialisationHas) {
  const Gpus gpus = gpus_for(GetParam(), 8);
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    rank.meet();
    const auto milliseconds = [](Clock::time_point since) {
      return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
    };
    auto start = Clock::now();
    Node node(rank, gpus.place);
    const double opened = milliseconds(start);
    start = Clock::now();
    std::byte* arena = node.take(32 * kMiB);
    const double allocated = milliseconds(start);
    start = Clock::now();
    node.share(0);
    const double shared = milliseconds(start);
    start = Clock::now();
    for (int i = 0; i < 100'000; ++i) node.share(0);
    const double again = milliseconds(start) / 100'000 * 1e6;
    if (rank.rank() == 0) {
      std::printf(
          "%d ranks: context and pool %.1f ms, 32 MiB %.1f ms, shared %.1f ms, share() with "
          "nothing new %.0f ns\n",
          rank.size(), opened, allocated, shared, again);
    }
    node.write_all(arena, 4096);
  });
}

TEST(GpuMemoryProcesses, CommunicatorsComeAndGo) {
  const Gpus gpus = gpus_for(Place::kProcesses);
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    for (int round = 0; round < 4; ++round) {
      {
        Node node(rank, gpus.place);
        std::byte* block = node.take(16 * kMiB);
        node.share(0);
        node.write_all(block, kMiB);
        require(node.pool->free(block));
      }
      rank.meet();
      EXPECT_TRUE(wait_for_janitor(soon()));
    }
    CHECK_CUDA(cudaDeviceSynchronize());
  });
}

TEST(GpuMemoryProcesses, EachMaySeeItsOwnGpuOnly) {
  const Gpus gpus = gpus_for(Place::kProcesses);
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    setenv("CUDA_VISIBLE_DEVICES", std::to_string(rank.rank()).c_str(), 1);
    Node node(rank, gpus.place, 0);
    int seen = 0;
    CHECK_CUDA(cudaGetDeviceCount(&seen));
    EXPECT_EQ(seen, 1);
    std::byte* block = node.take(16 * kMiB);
    node.share(0);
    node.write_all(block, kMiB);
    void* tensor = nullptr;
    CHECK_CUDA(cudaMalloc(&tensor, 4 * kMiB));
    require(node.pool->add_foreign(tensor, 4 * kMiB));
    const Location at = *node.pool->locate(tensor, 1);
    node.share(at.segment);
    node.write_all(static_cast<std::byte*>(tensor), 64 * 1024);
    require(node.pool->remove_foreign(tensor, soon()));
    rank.meet();
    CHECK_CUDA(cudaFree(tensor));
  });
}

// A process that dies leaves its memory mapped where it was: kernels of others that are on their
// way there do no harm.
TEST(GpuMemoryProcesses, APeerDies) {
  const Gpus gpus = gpus_for(Place::kProcesses);
  NEED_GPUS(gpus);
  const int victim = gpus.ranks - 1;
  run(gpus,
      [&](Rank& rank) {
        Node node(rank, gpus.place);
        std::byte* block = node.take(16 * kMiB);
        node.share(0);
        node.write_all(block, kMiB);
        const auto all = node.gather(*node.pool->locate(block, 1));
        rank.meet();
        if (rank.rank() == victim) raise(SIGKILL);
        const auto& dead = node.peers[static_cast<size_t>(victim)];
        const Deadline deadline = soon();
        while (!dead->dead() && !deadline.passed()) std::this_thread::sleep_for(Milliseconds(1));
        node.take(64 * kMiB);
        const auto start = Clock::now();
        EXPECT_EQ(node.pool->share(0, node.peers, soon()).code(), Code::kRemoteFailed);
        EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
        const Through there = node.through(victim, all[static_cast<size_t>(victim)]);
        test::launch_write(node.stream, there, kMiB / 4, 7);
        *node.wrong->words = 0;
        test::launch_compare(node.stream, there, kMiB / 4, 7, node.wrong->words);
        node.wait();
        std::printf("rank %d: %u words of the dead one's memory are not what was written\n",
                    rank.rank(), *node.wrong->words);
        // The survivors still reach each other.
        rank.meet(victim);
        for (int r = 0; r < victim; ++r) {
          const Location at = all[static_cast<size_t>(r)];
          test::launch_compare(
              node.stream,
              node.through(r, {at.segment, at.offset + kMiB * static_cast<size_t>(rank.rank())}),
              kMiB / 8, Node::value(rank.rank(), r), node.wrong->words);
        }
        *node.wrong->words = 0;
        node.wait();
        EXPECT_EQ(*node.wrong->words, 0u);
        rank.meet(victim);
      },
      {victim});
}

}  // namespace
}  // namespace zbccl::cuda
