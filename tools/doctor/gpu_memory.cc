#include "doctor/gpu_memory.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fmt/core.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace zbccl::tools {
namespace {

using Level = Finding::Level;

constexpr size_t kProbeWords = 1024;
constexpr size_t kProbeBytes = kProbeWords * sizeof(uint64_t);
using Words = std::array<uint64_t, kProbeWords>;

// The driver's functions, by the runtime: nothing is linked that a machine without it lacks.
template <typename Function>
Function driver_function(const char* name) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &address, CUDA_VERSION, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Function>(address);
}

bool has_attribute(CUdevice_attribute attribute, int ordinal) {
  using Get = CUresult (*)(int*, CUdevice_attribute, CUdevice);
  const auto get = driver_function<Get>("cuDeviceGetAttribute");
  int value = 0;
  return get != nullptr && get(&value, attribute, ordinal) == CUDA_SUCCESS && value != 0;
}

// A chunk is made and exported, as the library does with every one of its pool. "" or what failed.
std::string export_chunk(int ordinal) {
  using Create = CUresult (*)(CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*,
                              unsigned long long);
  using Granularity =
      CUresult (*)(size_t*, const CUmemAllocationProp*, CUmemAllocationGranularity_flags);
  using Export = CUresult (*)(void*, CUmemGenericAllocationHandle, CUmemAllocationHandleType,
                              unsigned long long);
  using Release = CUresult (*)(CUmemGenericAllocationHandle);
  const auto create = driver_function<Create>("cuMemCreate");
  const auto granularity = driver_function<Granularity>("cuMemGetAllocationGranularity");
  const auto share = driver_function<Export>("cuMemExportToShareableHandle");
  const auto release = driver_function<Release>("cuMemRelease");
  if (create == nullptr || granularity == nullptr || share == nullptr || release == nullptr) {
    return "the driver has no virtual memory management: install a newer one";
  }
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = ordinal;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  size_t bytes = 0;
  CUmemGenericAllocationHandle chunk = 0;
  CUresult result = granularity(&bytes, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  if (result == CUDA_SUCCESS) result = create(&chunk, bytes, &properties, 0);
  if (result != CUDA_SUCCESS) {
    return fmt::format("a chunk cannot be made (CUDA error {}); is the GPU's memory full?",
                       static_cast<int>(result));
  }
  int fd = -1;
  result = share(&fd, chunk, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
  if (fd >= 0) close(fd);
  (void)release(chunk);
  if (result == CUDA_SUCCESS) return {};
  return fmt::format(
      "a chunk cannot be exported as a file descriptor (CUDA error {}); some "
      "containers and virtual machines forbid it",
      static_cast<int>(result));
}

// Memory of a GPU, given back at the end.
class Block {
 public:
  explicit Block(int ordinal) : ordinal_(ordinal) {
    error_ = cudaSetDevice(ordinal);
    if (error_ == cudaSuccess) error_ = cudaMalloc(&data_, kProbeBytes);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() {
    if (data_ == nullptr) return;
    (void)cudaSetDevice(ordinal_);
    (void)cudaFree(data_);
  }
  cudaError_t error() const { return error_; }
  void* data() const { return data_; }

 private:
  int ordinal_;
  void* data_ = nullptr;
  cudaError_t error_;
};

std::string export_ipc(int ordinal) {
  const Block block(ordinal);
  if (block.error() != cudaSuccess) return cudaGetErrorString(block.error());
  cudaIpcMemHandle_t handle;
  const cudaError_t error = cudaIpcGetMemHandle(&handle, block.data());
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  return cudaGetErrorString(error);
}

// `from` writes numbers to `to` through its mapping and reads them back; `to` itself is asked, too.
std::string try_pair(int from, int to) {
  const Block near(from);
  const Block far(to);
  if (near.error() != cudaSuccess) return cudaGetErrorString(near.error());
  if (far.error() != cudaSuccess) return cudaGetErrorString(far.error());
  Words numbers;
  for (size_t i = 0; i < kProbeWords; ++i) {
    numbers[i] = (i + 1) * 0x9e3779b97f4a7c15U + static_cast<uint64_t>(from * 64 + to);
  }
  Words seen = {};
  Words back = {};
  cudaError_t error = cudaSetDevice(from);
  const auto step = [&](cudaError_t result) {
    if (error == cudaSuccess) error = result;
  };
  const cudaError_t enabled = cudaDeviceEnablePeerAccess(to, 0);
  if (enabled == cudaErrorPeerAccessAlreadyEnabled) {
    (void)cudaGetLastError();
  } else {
    step(enabled);
  }
  step(cudaMemcpy(near.data(), numbers.data(), kProbeBytes, cudaMemcpyHostToDevice));
  step(cudaMemcpyAsync(far.data(), near.data(), kProbeBytes, cudaMemcpyDeviceToDevice, nullptr));
  step(cudaMemsetAsync(near.data(), 0, kProbeBytes, nullptr));
  step(cudaMemcpyAsync(near.data(), far.data(), kProbeBytes, cudaMemcpyDeviceToDevice, nullptr));
  step(cudaMemcpy(back.data(), near.data(), kProbeBytes, cudaMemcpyDeviceToHost));
  step(cudaSetDevice(to));
  step(cudaMemcpy(seen.data(), far.data(), kProbeBytes, cudaMemcpyDeviceToHost));
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return cudaGetErrorString(error);
  }
  if (seen != numbers) return "what is written does not arrive";
  if (back != numbers) return "what is read is not what is there";
  return {};
}

}  // namespace

std::vector<Finding> check_gpu_sharing(int gpus) {
  std::vector<Finding> findings;
  std::string chunks;
  std::string foreign;
  int fabric = 0;
  for (int ordinal = 0; ordinal < gpus; ++ordinal) {
    const Block context(ordinal);  // the driver's functions want a context
    if (const std::string why = export_chunk(ordinal); !why.empty()) {
      chunks += fmt::format("{}GPU {}: {}", chunks.empty() ? "" : "; ", ordinal, why);
    }
    if (const std::string why = export_ipc(ordinal); !why.empty()) {
      foreign += fmt::format("{}GPU {}: {}", foreign.empty() ? "" : "; ", ordinal, why);
    }
    fabric += has_attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, ordinal) ? 1 : 0;
  }
  findings.push_back(
      chunks.empty() ? Finding{Level::kOk, "GPU memory by file descriptors",
                               "chunks can be made and exported (what zbcclMemAllocDevice does)"}
                     : Finding{Level::kFail, "GPU memory by file descriptors", chunks});
  findings.push_back(
      foreign.empty()
          ? Finding{Level::kOk, "GPU memory by IPC", "memory from cudaMalloc can be shared"}
          : Finding{Level::kWarn, "GPU memory by IPC",
                    foreign + "; memory that is not the library's is staged there: allocate it by "
                              "zbcclMemAllocDevice"});
  findings.push_back(
      {Level::kOk, "GPU fabric handles",
       fabric > 0 ? fmt::format("offered by {} of {} GPUs; not needed in one machine", fabric, gpus)
                  : "not offered; not needed in one machine"});
  findings.push_back({Level::kOk, "NVLink multicast",
                      "never used nor asked for; the command switches it off in NCCL, PyTorch and "
                      "NVSHMEM as well"});
  return findings;
}

Finding check_gpu_reach(int gpus) {
  const std::string subject = "peer access";
  const char* const denied = std::getenv("ZBCCL_DENY_REACH");
  if (denied != nullptr && std::strcmp(denied, "mapped") == 0) {
    return {Level::kWarn, subject,
            "ZBCCL_DENY_REACH=mapped denies it to the library; unset that, which is for tests"};
  }
  if (gpus < 2) return {Level::kOk, subject, "one GPU"};
  std::string unlinked;
  std::string broken;
  for (int from = 0; from < gpus; ++from) {
    for (int to = 0; to < gpus; ++to) {
      if (from == to) continue;
      int allowed = 0;
      if (cudaDeviceCanAccessPeer(&allowed, from, to) != cudaSuccess || allowed == 0) {
        unlinked += fmt::format("{}{} -> {}", unlinked.empty() ? "" : ", ", from, to);
      } else if (const std::string why = try_pair(from, to); !why.empty()) {
        broken += fmt::format("{}{} -> {} ({})", broken.empty() ? "" : ", ", from, to, why);
      }
    }
  }
  if (!broken.empty()) {
    return {
        Level::kFail, subject,
        fmt::format("allowed by the driver, and does not work: {}; PCIe access control (ACS) or "
                    "an IOMMU that translates peers' addresses does that: see nvidia-smi topo "
                    "-p2p rw and the machine's firmware",
                    broken)};
  }
  if (!unlinked.empty()) {
    return {
        Level::kWarn, subject,
        fmt::format("the driver allows none between {}; GPUs without NVLink in a virtual "
                    "machine, with PCIe access control (ACS) on, in MIG mode or of unlike kinds "
                    "do not reach each other: see nvidia-smi topo -p2p rw",
                    unlinked)};
  }
  return {Level::kOk, subject,
          fmt::format("each of {} GPUs writes to and reads from every other (tried; the library "
                      "tries it again with loads and stores)",
                      gpus)};
}

}  // namespace zbccl::tools
