// Ranks whose GPUs share memory: what the tests of memory on GPUs stand on. Behind the public API.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gpu/memory_kernels.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/janitor.h"
#include "memory/cuda/peer_access.h"
#include "memory/cuda/remote_memory.h"
#include "memory/device_memory.h"
#include "memory/exchange.h"
#include "support/job.h"

namespace zbccl::cuda {

using memory::Exchange;
using memory::PeerProcess;
using memory::ProcessInfo;
using test::JobOptions;
using test::Mode;
using test::Rank;
using test::Through;

constexpr size_t kMiB = size_t{1} << 20;

inline Deadline soon() { return Deadline::after(Milliseconds(30'000)); }

inline void require(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.to_string());
}
template <typename T>
T require(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().to_string());
  return std::move(result).value();
}
inline void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(result) + ": " +
                           cudaGetErrorString(result));
}
#define CHECK_CUDA(call) check(call, #call)

// Counted in a process of its own, since CUDA does not survive a fork.
inline int count_gpus() {
  static const int count = [] {
    const pid_t child = fork();
    if (child == 0) {
      int found = 0;
      _exit(cudaGetDeviceCount(&found) == cudaSuccess ? std::min(found, 64) : 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
  }();
  return count;
}

enum class Place { kProcesses, kThreads, kOneGpu };

struct Gpus {
  Place place = Place::kProcesses;
  int ranks = 0;  // as many as there are GPUs, at least 2 and at most 4
};

// What the test runs on; ranks is 0 where there are too few GPUs.
inline Gpus gpus_for(Place place, int most = 4) {
  const int count = count_gpus();
  if (place == Place::kOneGpu) return {place, count >= 1 ? std::min(3, most) : 0};
  return {place, count >= 2 ? std::min(count, most) : 0};
}
inline std::string lacking(const Gpus& gpus) {
  if (gpus.ranks > 0) return "";
  return (gpus.place == Place::kOneGpu ? "needs a GPU; " : "needs 2 GPUs; ") +
         std::to_string(count_gpus()) + " can be used here";
}
#define NEED_GPUS(gpus) \
  if (const std::string why = lacking(gpus); !why.empty()) GTEST_SKIP() << why

inline void run(const Gpus& gpus, const test::RankFunction& function, std::set<int> killed = {}) {
  JobOptions options;
  options.ranks = gpus.ranks;
  options.mode = gpus.place == Place::kProcesses ? Mode::kProcesses : Mode::kThreads;
  options.deadline = std::chrono::seconds(120);
  options.killed = std::move(killed);
  options.env = {{"NCCL_NVLS_ENABLE", "0"},
                 {"CUDA_MODULE_LOADING", "EAGER"},
                 {"CUDA_DEVICE_MAX_CONNECTIONS", "32"}};
  run_job(options, function);
}

// Words that the host and kernels see.
struct Pinned {
  Pinned() {
    void* memory = nullptr;
    CHECK_CUDA(cudaHostAlloc(&memory, 4096, cudaHostAllocPortable));
    words = static_cast<uint32_t*>(memory);
  }
  ~Pinned() { (void)cudaFreeHost(words); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  uint32_t* words = nullptr;
};

// A kernel that occupies a stream of its own until it is released.
class Spinner {
 public:
  Spinner() {
    std::memset(pinned_.words, 0, 8);
    CHECK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    CHECK_CUDA(cudaEventCreateWithFlags(&end_, cudaEventDisableTiming));
    test::launch_spin(stream_, pinned_.words, pinned_.words + 1);
    CHECK_CUDA(cudaGetLastError());
    CHECK_CUDA(cudaEventRecord(end_, stream_));
    const Deadline deadline = soon();
    while (std::atomic_ref<uint32_t>(pinned_.words[0]).load() == 0 && !deadline.passed()) {
    }
  }
  ~Spinner() {
    release();
    (void)cudaStreamDestroy(stream_);
    (void)cudaEventDestroy(end_);
  }
  Spinner(const Spinner&) = delete;
  Spinner& operator=(const Spinner&) = delete;
  bool running() const {
    return std::atomic_ref<uint32_t>(pinned_.words[0]).load() != 0 &&
           cudaEventQuery(end_) == cudaErrorNotReady;
  }
  void release() {
    std::atomic_ref<uint32_t>(pinned_.words[1]).store(1);
    (void)cudaStreamSynchronize(stream_);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  Pinned pinned_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

// One rank with its GPU, connected to all others.
class Node {
 public:
  Node(Rank& base, Place place, int visible = -1) : rank(base) {
    device = place == Place::kOneGpu ? 0 : visible >= 0 ? visible : rank.rank();
    CHECK_CUDA(cudaSetDevice(device));
    CHECK_CUDA(cudaFree(nullptr));
    test::load_kernels();
    CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    wrong = std::make_unique<Pinned>();
    exchange = require(Exchange::acquire());
    pool = require(DevicePool::of(device));
    struct Introduction {
      ProcessInfo process;
      DeviceId id;
    };
    for (const Introduction& peer : gather(Introduction{exchange->info(), pool->id()})) {
      peers.push_back(require(exchange->peer(peer.process, soon())));
      remotes.push_back(require(RemoteMemory::open(peers.back(), peer.id, device)));
    }
  }
  ~Node() { (void)cudaStreamDestroy(stream); }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  template <typename T>
  std::vector<T> gather(const T& mine) {
    const int first = rank.size() * rank.next_index();
    rank.board().put_blob(first + rank.rank(), &mine, sizeof mine);
    std::vector<T> all(static_cast<size_t>(rank.size()));
    for (int r = 0; r < rank.size(); ++r) {
      if (!rank.board().get_blob(first + r, &all[static_cast<size_t>(r)], sizeof(T),
                                 std::chrono::seconds(60))) {
        throw std::runtime_error("a rank shows nothing");
      }
    }
    return all;
  }

  std::byte* take(size_t bytes) {
    return static_cast<std::byte*>(require(pool->allocate(bytes, Use::kUser)));
  }
  void share(uint32_t segment) { require(pool->share(segment, peers, soon())); }
  void wait() {
    CHECK_CUDA(cudaGetLastError());
    CHECK_CUDA(cudaStreamSynchronize(stream));
  }
  Through through(int r, const Location& at) const {
    return {remotes[static_cast<size_t>(r)]->table(), at.segment, at.offset};
  }
  static uint32_t value(int from, int to) { return static_cast<uint32_t>(from * 1000 + to) << 12; }

  // Every rank writes into its place of everyone's block, half of it with a kernel and half with
  // the copy engine, and looks at what all wrote into its own.
  void write_all(std::byte* block, size_t stride) {
    const auto mine = static_cast<size_t>(rank.rank());
    const std::vector<Location> all = gather(*pool->locate(block, stride * peers.size()));
    const size_t half = stride / 2;
    std::byte* const source = take(half);
    for (int r = 0; r < rank.size(); ++r) {
      Location there = all[static_cast<size_t>(r)];
      there.offset += mine * stride;
      const uint32_t what = value(rank.rank(), r);
      test::launch_write(stream, through(r, there), half / 4, what);
      test::launch_write(stream, own(source), half / 4, what + 1);
      const uint64_t base = remotes[static_cast<size_t>(r)]->base(there.segment);
      ASSERT_NE(base, 0u) << "rank " << rank.rank() << " does not reach " << r;
      CHECK_CUDA(cudaMemcpyAsync(reinterpret_cast<void*>(base + there.offset + half), source, half,
                                 cudaMemcpyDefault, stream));
      wait();
    }
    rank.meet();
    *wrong->words = 0;
    for (int r = 0; r < rank.size(); ++r) {
      Through here = own(block);
      here.offset += static_cast<size_t>(r) * stride;
      const uint32_t what = value(r, rank.rank());
      test::launch_compare(stream, here, half / 4, what, wrong->words);
      here.offset += half;
      test::launch_compare(stream, here, half / 4, what + 1, wrong->words);
    }
    wait();
    EXPECT_EQ(*wrong->words, 0u) << "rank " << rank.rank();
    require(pool->free(source));
    rank.meet();
  }
  // Own memory through the own table, which has every segment of it, too.
  Through own(std::byte* block) const { return through(rank.rank(), *pool->locate(block, 1)); }

  Rank& rank;
  int device = 0;
  cudaStream_t stream = nullptr;
  std::unique_ptr<Pinned> wrong;
  std::shared_ptr<Exchange> exchange;
  DevicePool* pool = nullptr;
  std::vector<std::shared_ptr<PeerProcess>> peers;
  std::vector<std::shared_ptr<RemoteMemory>> remotes;
};

class GpuMemory : public testing::TestWithParam<Place> {};
inline std::string place_name(const testing::TestParamInfo<Place>& item) {
  constexpr const char* kNames[] = {"processes", "threads", "one_gpu"};
  return kNames[static_cast<int>(item.param)];
}

}  // namespace zbccl::cuda
