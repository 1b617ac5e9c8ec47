#include "perf/cuda_runtime.h"

#include <fmt/core.h>

#include <algorithm>
#include <stdexcept>
#include <vector>
#include <zbccl/zbccl.hpp>

#include "perf/data.h"

namespace zbccl::tools {

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(
      fmt::format("{}: {} ({})", what, cudaGetErrorName(error), cudaGetErrorString(error)));
}

CudaStream::CudaStream() {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  stream_.reset(stream);
}

void CudaStream::wait() const { check_cuda(cudaStreamSynchronize(get()), "cudaStreamSynchronize"); }

CudaEvent::CudaEvent() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreate(&event), "cudaEventCreate");
  event_.reset(event);
}

void CudaEvent::record(const CudaStream& stream) const {
  check_cuda(cudaEventRecord(event_.get(), stream.get()), "cudaEventRecord");
}

double CudaEvent::since(const CudaEvent& earlier) const {
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, earlier.event_.get(), event_.get()),
             "cudaEventElapsedTime");
  return static_cast<double>(milliseconds) * 1e3;
}

CudaGraph::CudaGraph(const CudaStream& stream, const std::function<void()>& enqueue) {
  // Other threads of the process, which may be ranks too, go on allocating meanwhile.
  check_cuda(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
  cudaGraph_t graph = nullptr;
  try {
    enqueue();
  } catch (...) {
    if (cudaStreamEndCapture(stream.get(), &graph) == cudaSuccess) (void)cudaGraphDestroy(graph);
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream.get(), &graph), "cudaStreamEndCapture");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
  (void)cudaGraphDestroy(graph);
  check_cuda(made, "cudaGraphInstantiate");
  graph_.reset(executable);
  check_cuda(cudaGraphUpload(executable, stream.get()), "cudaGraphUpload");
}

void CudaGraph::launch(const CudaStream& stream) const {
  check_cuda(cudaGraphLaunch(graph_.get(), stream.get()), "cudaGraphLaunch");
}

CudaMemory::CudaMemory(size_t bytes, DeviceMemoryKind kind, int device)
    : bytes_(std::max<size_t>(bytes, 1)), kind_(kind) {
  bytes = bytes_;
  if (kind == DeviceMemoryKind::kPool) {
    check(zbcclMemAllocDevice(&data_, bytes, device));
  } else {
    check_cuda(cudaMalloc(&data_, bytes), "cudaMalloc");
  }
  if (kind == DeviceMemoryKind::kRegistered) check(zbcclMemRegister(data_, bytes));
  fill_with_numbers();
}

void CudaMemory::fill_with_numbers() const {
  constexpr size_t kBlock = size_t{1} << 20;
  static const std::vector<std::byte> numbers = [] {
    std::vector<std::byte> block(kBlock);
    fill_bits(1, 0, kBlock, block.data());
    for (size_t i = 1; i < kBlock; i += 2) {
      // The upper half of an FP16 number or, with other exponents, of any other one.
      block[i] = (block[i] & std::byte{0x83}) | std::byte{0x3C};
    }
    return block;
  }();
  const size_t first = std::min(bytes_, kBlock);
  check_cuda(cudaMemcpy(data_, numbers.data(), first, cudaMemcpyHostToDevice), "cudaMemcpy");
  // What is there already is doubled.
  for (size_t done = first; done < bytes_;) {
    const size_t size = std::min(done, bytes_ - done);
    check_cuda(cudaMemcpy(data() + done, data_, size, cudaMemcpyDeviceToDevice), "cudaMemcpy");
    done += size;
  }
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

CudaMemory::~CudaMemory() {
  if (data_ == nullptr) return;
  if (kind_ == DeviceMemoryKind::kPool) {
    (void)zbcclMemFree(data_);
    return;
  }
  if (kind_ == DeviceMemoryKind::kRegistered) (void)zbcclMemDeregister(data_);
  (void)cudaFree(data_);
}

std::string cuda_version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace zbccl::tools
