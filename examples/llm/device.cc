#include "device.h"

#include "engine.h"
#include "error.h"

#ifdef LLM_HAVE_CUDA
#include "cuda_engine.h"
#endif

namespace llm {

#ifdef LLM_HAVE_CUDA

Parallel join(Device device) {
  if (device == Device::kHost) return Parallel::from_environment();
  const int gpu = choose_gpu();
  if (const cudaError_t code = cudaSetDevice(gpu); code != cudaSuccess) {
    fail("--device cuda: GPU {} cannot be used: {}", gpu, cudaGetErrorString(code));
  }
  return Parallel::from_environment(gpu);
}

std::unique_ptr<Model> make_engine(Device device, const Weights& weights, Parallel& parallel,
                                   int max_batch) {
  if (device == Device::kHost) return std::make_unique<Engine>(weights, parallel, max_batch);
  return std::make_unique<CudaEngine>(weights, parallel, max_batch);
}

std::string describe(Device device) {
  return device == Device::kHost ? "this machine's processors" : CudaEngine::gpu_name();
}

#else

Parallel join(Device device) {
  if (device == Device::kCuda) {
    fail("--device cuda: this build has no engine for GPUs; build it where nvcc is found");
  }
  return Parallel::from_environment();
}

std::unique_ptr<Model> make_engine(Device /*device*/, const Weights& weights, Parallel& parallel,
                                   int max_batch) {
  return std::make_unique<Engine>(weights, parallel, max_batch);
}

std::string describe(Device /*device*/) { return "this machine's processors"; }

#endif

}  // namespace llm
