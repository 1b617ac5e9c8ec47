// Runs the model on this rank's shard on a GPU. Collectives work on device memory that peers reach
// in place, on the stream of the kernels; the host waits once for each call of forward(). One
// thread.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cuda_expert_parallel.h"
#include "cuda_ops.h"
#include "model.h"
#include "weights.h"

namespace llm {

// The GPU for this rank: by its number among the machine's ranks where the launcher tells, else the
// first. Throws Error where there is none.
int choose_gpu();

class CudaEngine : public Model {
 public:
  // As Engine; the current CUDA device is used. `weights` may go afterwards.
  CudaEngine(const Weights& weights, Parallel& parallel, int max_batch);
  ~CudaEngine() override;
  CudaEngine(const CudaEngine&) = delete;
  CudaEngine& operator=(const CudaEngine&) = delete;

  const Config& config() const override { return config_; }
  const Parallel& parallel() const override { return parallel_; }
  void reset() override { length_ = 0; }
  std::span<const float> forward(std::span<const Token> tokens, Want want) override;

  // "NVIDIA H200 (GPU 1)"
  static std::string gpu_name();

 private:
  struct Layer {
    const float* attention_norm = nullptr;
    cuda::DeviceMatrix q, k, v, out;
    const float* expert_norm = nullptr;
    cuda::DeviceMatrix router;
    const cuda::DeviceExpert* experts = nullptr;
    cuda::DeviceCache cache;
  };
  struct Timed {
    Collective which;
    size_t count;
    cudaEvent_t before;
    cudaEvent_t after;
  };

  template <typename T>
  T* allocate(size_t count);
  template <typename T>
  const T* upload(std::span<const T> values);
  cuda::DeviceMatrix upload(const Matrix& matrix);
  float* allocate_registered(size_t count);
  void attention(const Layer& layer, int tokens);
  void experts(const Layer& layer, int tokens);
  void sliced_experts(const Layer& layer, int tokens);
  void whole_experts(const Layer& layer, int tokens);
  void all_reduce(Collective which, int tokens);
  template <typename F>
  void timed(Collective which, size_t count, F&& call);
  cudaEvent_t next_event();
  void settle();
  std::span<const float> project(int first, int tokens);

  const Config config_;
  const Shard shard_;
  Parallel& parallel_;
  const int max_batch_;
  int length_ = 0;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> owned_;       // by cudaMalloc
  std::vector<void*> registered_;  // by zbcclMemAllocDevice
  std::vector<cudaEvent_t> events_;
  size_t events_used_ = 0;
  std::vector<Timed> timed_;

  std::vector<Layer> layers_;
  cuda::DeviceMatrix embedding_, head_;
  const float* norm_ = nullptr;
  cuda::DeviceRotary rotary_;
  // [max_batch, width]
  uint8_t* tokens_ = nullptr;
  float* residual_ = nullptr;
  float* normed_ = nullptr;
  float *q_ = nullptr, *k_ = nullptr, *v_ = nullptr, *heads_out_ = nullptr;
  float* router_logits_ = nullptr;
  Route* routes_ = nullptr;
  float* hidden_ = nullptr;
  // What collectives work on.
  float* partial_ = nullptr;       // [max_batch, dim]
  float* logits_parts_ = nullptr;  // [ranks, max_batch, vocab_stride]
  std::optional<CudaExpertParallel> whole_experts_;
  std::vector<float> parts_;   // the same on the host
  std::vector<float> logits_;  // [max_batch, vocab]
};

}  // namespace llm
