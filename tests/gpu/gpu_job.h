// Jobs whose ranks have GPUs.
//
// As with every job, the calling process only forks and watches; CUDA is first used in the
// children.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>
#include <zbccl/zbccl.hpp>

#include "perf/cuda_runtime.h"
#include "support/connect.h"
#include "support/job.h"

namespace zbccl::test {

using tools::check_cuda;
using tools::CudaEvent;
using tools::CudaGraph;
using tools::CudaMemory;
using tools::CudaStream;
using tools::DeviceMemoryKind;

enum class Place {
  kGpuEach,  // every rank a process with a GPU of its own
  kThreads,  // all ranks threads of one process, each with a GPU of its own
  kOneGpu,   // all ranks threads of one process on GPU 0
};
const char* place_name(Place place);

// Counted once, in a process of its own; 0 where there is no driver.
int count_gpus();
// Why such a job cannot run here; "" if it can.
std::string lacking(Place place, int ranks);
// Skips the test where that is so.
#define ZBCCL_NEED_GPUS(place, ranks)                                \
  if (const std::string why = lacking(place, ranks); !why.empty()) { \
    GTEST_SKIP() << why;                                             \
  }                                                                  \
  static_assert(true)
// The most ranks up to `most` that have a GPU each, or on one GPU `most`.
int ranks_at(Place place, int most);

struct GpuJob {
  int ranks = 2;
  Place place = Place::kGpuEach;
  std::chrono::seconds deadline{60};
  std::vector<std::pair<std::string, std::string>> env = {};
  std::set<int> killed = {};  // ranks whose process is expected to end by SIGKILL
};

// One rank of a running job, with its device current on its thread.
//
// Ranks that share a GPU wait for each other's kernels. What waits for the whole device
// (cudaMalloc, cudaFree, cudaMemcpy, making and destroying communicators) is done while no rank has
// work there: between two calls of meet(), with wait() before the first one.
class GpuRank {
 public:
  GpuRank(Rank& rank, Place place);

  int rank() const { return rank_.rank(); }
  int size() const { return rank_.size(); }
  Place place() const { return place_; }
  int device() const { return device_; }
  Rank& base() { return rank_; }
  const CudaStream& stream() const { return stream_; }
  void note(const std::string& text) { rank_.note(text); }
  void meet() { rank_.meet(); }
  // Waits for this rank's stream, then for the other ranks.
  void settle();

  zbcclConfig_t config(std::chrono::milliseconds timeout = std::chrono::seconds(20)) const;
  // Collective over the job's first `count` ranks (0: all).
  Communicator connect(const zbcclConfig_t& config, int count = 0);
  Communicator connect() { return connect(config()); }
  // How a call on this rank's stream is made.
  zbcclCall_t call() const { return call_on(stream_); }
  static zbcclCall_t call_on(const CudaStream& stream);

 private:
  Rank& rank_;
  Place place_;
  int device_;
  CudaStream stream_;
};

void run_gpu_job(const GpuJob& job, const std::function<void(GpuRank&)>& function);

// The same around a communicator of all ranks, which nothing has gone wrong with in the end.
void run_with_communicator(const GpuJob& job,
                           const std::function<void(GpuRank&, Communicator&)>& body);

// Host memory that copies to and from a GPU do not wait for.
class Pinned {
 public:
  explicit Pinned(size_t bytes);
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned();
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

// What `comm` knows to have failed on the device, waited for until `patience` is over; zbcclSuccess
// if nothing has.
zbcclResult_t wait_for_error(const Communicator& comm, std::chrono::milliseconds patience);

}  // namespace zbccl::test
