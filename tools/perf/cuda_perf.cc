#include "perf/cuda_perf.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>
#include <zbccl/zbccl.hpp>

#include "command.h"
#include "perf/cuda_bench.h"
#include "perf/cuda_member.h"
#include "perf/cuda_runtime.h"
#include "perf/nccl_library.h"

namespace zbccl::tools {
namespace {

constexpr int kSharedBlocks = 128;  // of all ranks on one GPU

int max_blocks(const PerfOptions& options, int ranks) {
  // The grids of all ranks must be on the GPU at the same time.
  const bool shares = options.cuda.one_gpu && options.cuda.max_blocks == 0;
  return shares ? std::max(kSharedBlocks / ranks, 1) : options.cuda.max_blocks;
}

uint64_t run_member(Communicator& control, const PerfOptions& options, int device) {
  warm_up(device);  // before the communicator's time is taken
  MadeCommunicator made = device_communicator(control, device, max_blocks(options, control.size()));
  const uint64_t wrong = run_cuda_bench({control, made.comm, device, made.init_ms}, options);
  made.comm.destroy();
  return wrong;
}

// How many there are, or why none can be used.
std::string visible_gpus(const PerfArguments& arguments) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count < 1) {
    return fmt::format(
        "--device cuda: no GPU can be used here ({}); see nvidia-smi, CUDA_VISIBLE_DEVICES and the "
        "driver's version, or take --device host",
        error == cudaSuccess ? "none is visible" : cudaGetErrorString(error));
  }
  try {
    if (!arguments.compare.empty()) (void)load_nccl(arguments.nccl_library);
  } catch (const std::exception& why) {
    return why.what();
  }
  return std::to_string(count);
}

void say(int rank, const std::exception& error) {
  std::fprintf(stderr, "zbccl perf: rank %d: %s\n", rank, error.what());
}

}  // namespace

void set_cuda_environment(const PerfArguments& arguments) {
  setenv("NCCL_NVLS_ENABLE", "0", 1);
  setenv("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1", 1);
  setenv("NVSHMEM_DISABLE_NVLS", "1", 1);
  if (!arguments.algorithm.empty()) setenv("ZBCCL_ALGORITHM", arguments.algorithm.c_str(), 1);
  if (!arguments.one_gpu) return;
  // Ranks on one GPU wait for each other's kernels: each stream needs a queue of its own, and no
  // kernel may be loaded while another one spins.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1);
  setenv("CUDA_MODULE_LOADING", "EAGER", 1);
}

int count_gpus(const PerfArguments& arguments) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (child == 0) {
    const std::string found = visible_gpus(arguments);
    (void)!write(ends[1], found.data(), found.size());
    _exit(0);
  }
  close(ends[1]);
  std::string found;
  char part[1024];
  for (ssize_t n = 0; (n = read(ends[0], part, sizeof part)) > 0;) {
    found.append(part, static_cast<size_t>(n));
  }
  close(ends[0]);
  waitpid(child, nullptr, 0);
  const int count = std::atoi(found.c_str());
  if (count > 0) return count;
  throw UsageError(found.empty() ? "--device cuda: the CUDA driver ended the process" : found);
}

int run_cuda_rank(const PerfArguments& arguments) {
  int rank = -1;
  try {
    const zbcclConfig_t config = host_config();
    Communicator control = Communicator::from_environment(&config);
    rank = control.rank();
    if (arguments.ranks != 0 && arguments.ranks != control.size()) {
      throw UsageError(fmt::format("--ranks {}: this job has {} ranks; leave the option out",
                                   arguments.ranks, control.size()));
    }
    const PerfOptions options = check_arguments(arguments, control.size());
    if (options.cuda.one_gpu || options.cuda.threads) {
      throw UsageError("--one-gpu and --threads start their ranks themselves, outside of a job");
    }
    const uint64_t wrong = run_member(control, options, local_gpu(rank));
    control.destroy();
    return wrong == 0 ? kSuccess : kFailure;
  } catch (const UsageError&) {
    throw;
  } catch (const std::exception& error) {
    say(rank, error);
    return kFailure;
  }
}

int run_cuda_threads(const PerfOptions& options, int ranks) {
  const zbcclConfig_t config = host_config();
  std::vector<Communicator> controls = Communicator::in_process(ranks, &config);
  std::vector<int> codes(controls.size(), kFailure);
  std::vector<std::thread> threads;
  threads.reserve(controls.size());
  for (size_t i = 0; i < controls.size(); ++i) {
    threads.emplace_back([&, i] {
      const int rank = static_cast<int>(i);
      try {
        Communicator control = std::move(controls[i]);
        const uint64_t wrong = run_member(control, options, options.cuda.one_gpu ? 0 : rank);
        control.destroy();
        codes[i] = wrong == 0 ? kSuccess : kFailure;
      } catch (const std::exception& error) {
        say(rank, error);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int code : codes) {
    if (code != kSuccess) return code;
  }
  return kSuccess;
}

}  // namespace zbccl::tools
