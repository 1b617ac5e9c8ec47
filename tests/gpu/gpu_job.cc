#include "gpu/gpu_job.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

namespace zbccl::test {
namespace {

// Blocks of a call where ranks share a GPU: the grids of 8 ranks must be on it at the same time.
constexpr int kSharedBlocks = 8;

int device_of(Place place, int rank) { return place == Place::kOneGpu ? 0 : rank; }

// Makes the rank's device current before anything of the rank is made on it.
int use(int device) {
  check_cuda(cudaSetDevice(device), "cudaSetDevice");
  check_cuda(cudaFree(nullptr), "cudaFree");
  return device;
}

}  // namespace

const char* place_name(Place place) {
  switch (place) {
    case Place::kGpuEach: return "processes";
    case Place::kThreads: return "threads";
    case Place::kOneGpu: return "one_gpu";
  }
  return "unknown";
}

int count_gpus() {
  static const int count = [] {
    const pid_t child = ::fork();
    if (child == 0) {
      int found = 0;
      ::_exit(cudaGetDeviceCount(&found) == cudaSuccess ? std::min(found, 64) : 0);
    }
    int status = 0;
    if (child < 0 || ::waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 0;
    return WEXITSTATUS(status);
  }();
  return count;
}

std::string lacking(Place place, int ranks) {
  const int needed = place == Place::kOneGpu ? 1 : ranks;
  if (count_gpus() >= needed) return "";
  return "needs " + std::to_string(needed) + " GPUs; " + std::to_string(count_gpus()) +
         " can be used here";
}

int ranks_at(Place place, int most) {
  return place == Place::kOneGpu ? most : std::clamp(count_gpus(), 1, most);
}

GpuRank::GpuRank(Rank& rank, Place place)
    : rank_(rank), place_(place), device_(use(device_of(place, rank.rank()))) {}

void GpuRank::settle() {
  stream_.wait();
  meet();
}

zbcclConfig_t GpuRank::config(std::chrono::milliseconds timeout) const {
  zbcclConfig_t config = test_config(timeout);
  config.device = device_;
  if (place_ == Place::kOneGpu) config.max_blocks = kSharedBlocks;
  return config;
}

Communicator GpuRank::connect(const zbcclConfig_t& config, int count) {
  return test::connect(rank_, config, Join::kId, count);
}

zbcclCall_t GpuRank::call_on(const CudaStream& stream) {
  zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
  call.stream = stream.get();
  return call;
}

void run_gpu_job(const GpuJob& job, const std::function<void(GpuRank&)>& function) {
  JobOptions options;
  options.ranks = job.ranks;
  options.mode = job.place == Place::kGpuEach ? Mode::kProcesses : Mode::kThreads;
  options.deadline = job.deadline;
  options.killed = job.killed;
  options.env = job.env;
  if (job.place == Place::kOneGpu) {
    // Each stream a queue of its own, and no kernel loaded while another one spins.
    options.env.emplace_back("CUDA_DEVICE_MAX_CONNECTIONS", "32");
    options.env.emplace_back("CUDA_MODULE_LOADING", "EAGER");
  }
  run_job(options, [&](Rank& base) {
    GpuRank rank(base, job.place);
    base.meet();
    function(rank);
  });
}

void run_with_communicator(const GpuJob& job,
                           const std::function<void(GpuRank&, Communicator&)>& body) {
  run_gpu_job(job, [&](GpuRank& rank) {
    Communicator comm = rank.connect();
    rank.settle();
    body(rank, comm);
    rank.settle();
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    comm.destroy();
    rank.settle();
  });
}

Pinned::Pinned(size_t bytes) {
  check_cuda(cudaMallocHost(&data_, std::max<size_t>(bytes, 1)), "cudaMallocHost");
}

Pinned::~Pinned() { (void)cudaFreeHost(data_); }

zbcclResult_t wait_for_error(const Communicator& comm, std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  for (;;) {
    const zbcclResult_t state = comm.async_error();
    if (state != zbcclSuccess || std::chrono::steady_clock::now() > end) return state;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace zbccl::test
