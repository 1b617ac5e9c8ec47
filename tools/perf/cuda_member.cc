#include "perf/cuda_member.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "perf/cuda_runtime.h"

namespace zbccl::tools {
namespace {

// Long enough for the host's part of a check of the largest sizes, and far from 10 minutes: a
// benchmark that hangs holds machines.
constexpr int64_t kTimeoutMs = 60'000;

// Collective: an id that rank 0 makes.
zbcclUniqueId agree_on_id(Communicator& control) {
  Buffer<std::byte> shared(sizeof(zbcclUniqueId));
  zbcclUniqueId id = {};
  if (control.rank() == 0) check(zbcclGetUniqueId(&id));
  std::memcpy(shared.data(), &id, sizeof id);
  control.broadcast(shared.span(), 0);
  std::memcpy(&id, shared.data(), sizeof id);
  return id;
}

int local_rank(int rank) {
  for (const char* name : {"ZBCCL_LOCAL_RANK", "LOCAL_RANK", "SLURM_LOCALID",
                           "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return std::atoi(value);
  }
  return rank;
}

}  // namespace

zbcclConfig_t host_config() {
  zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
  config.device = ZBCCL_DEVICE_NONE;
  return config;
}

int local_gpu(int rank) {
  int gpus = 0;
  check_cuda(cudaGetDeviceCount(&gpus), "cudaGetDeviceCount");
  return local_rank(rank) % std::max(gpus, 1);
}

void warm_up(int device) {
  check_cuda(cudaSetDevice(device), "cudaSetDevice");
  check_cuda(cudaFree(nullptr), "cudaFree");
}

MadeCommunicator device_communicator(Communicator& control, int device, int max_blocks) {
  zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
  config.device = device;
  config.max_blocks = max_blocks;
  if (std::getenv("ZBCCL_TIMEOUT") == nullptr) config.timeout_ms = kTimeoutMs;
  const zbcclUniqueId id = agree_on_id(control);
  control.barrier();
  const auto begin = std::chrono::steady_clock::now();
  Communicator comm = Communicator::from_id(control.size(), control.rank(), id, &config);
  const std::chrono::duration<double, std::milli> init = std::chrono::steady_clock::now() - begin;
  return {std::move(comm), init.count()};
}

}  // namespace zbccl::tools
