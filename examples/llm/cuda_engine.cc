#include "cuda_engine.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "error.h"

namespace llm {
namespace {

void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) fail("{}: {}", what, cudaGetErrorString(code));
}

int size_of(size_t count) { return static_cast<int>(count); }

}  // namespace

int choose_gpu() {
  int gpus = 0;
  const cudaError_t code = cudaGetDeviceCount(&gpus);
  if (code != cudaSuccess || gpus == 0) {
    fail("--device cuda: no GPU can be used here ({})",
         code == cudaSuccess ? "none is visible" : cudaGetErrorString(code));
  }
  for (const char* name : {"ZBCCL_LOCAL_RANK", "LOCAL_RANK", "SLURM_LOCALID",
                           "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"}) {
    const char* const text = std::getenv(name);
    if (text == nullptr) continue;
    const int rank = std::atoi(text);
    if (rank < 0) continue;
    if (rank >= gpus) fail("--device cuda: local rank {} has no GPU; {} are visible", rank, gpus);
    return rank;
  }
  return 0;
}

std::string CudaEngine::gpu_name() {
  int device = 0;
  cudaDeviceProp properties;
  check(cudaGetDevice(&device), "the current GPU");
  check(cudaGetDeviceProperties(&properties, device), "the GPU's properties");
  return fmt::format("{} (GPU {})", properties.name, device);
}

template <typename T>
T* CudaEngine::allocate(size_t count) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, std::max<size_t>(count, 1) * sizeof(T)), "memory of the GPU");
  owned_.push_back(memory);
  return static_cast<T*>(memory);
}

template <typename T>
const T* CudaEngine::upload(std::span<const T> values) {
  T* const memory = allocate<T>(values.size());
  check(cudaMemcpy(memory, values.data(), values.size_bytes(), cudaMemcpyHostToDevice),
        "copying weights to the GPU");
  return memory;
}

cuda::DeviceMatrix CudaEngine::upload(const Matrix& matrix) {
  return {upload(std::span<const Bfloat16>(matrix.values)), matrix.rows, matrix.columns};
}

float* CudaEngine::allocate_registered(size_t count) {
  int device = 0;
  check(cudaGetDevice(&device), "the current GPU");
  void* memory = nullptr;
  zbccl::check(zbcclMemAllocDevice(&memory, std::max<size_t>(count, 1) * sizeof(float), device));
  registered_.push_back(memory);
  return static_cast<float*>(memory);
}

CudaEngine::CudaEngine(const Weights& weights, Parallel& parallel, int max_batch)
    : config_(weights.config), shard_(weights.shard), parallel_(parallel), max_batch_(max_batch) {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
  const int kv_heads = shard_.kv_heads.size();
  const size_t cached = static_cast<size_t>(kv_heads) * config_.context * config_.head_dim;
  for (const LayerWeights& from : weights.layers) {
    Layer layer;
    layer.attention_norm = upload(std::span<const float>(from.attention_norm));
    layer.q = upload(from.q);
    layer.k = upload(from.k);
    layer.v = upload(from.v);
    layer.out = upload(from.out);
    layer.expert_norm = upload(std::span<const float>(from.expert_norm));
    layer.router = upload(from.router);
    std::vector<cuda::DeviceExpert> experts;
    for (const Expert& expert : from.experts) {
      experts.push_back({upload(expert.gate), upload(expert.up), upload(expert.down)});
    }
    layer.experts = upload(std::span<const cuda::DeviceExpert>(experts));
    layer.cache = {allocate<float>(cached), allocate<float>(cached), kv_heads, config_.context};
    layers_.push_back(layer);
  }
  embedding_ = upload(weights.embedding);
  head_ = upload(weights.head);
  norm_ = upload(std::span<const float>(weights.norm));
  const int half = config_.head_dim / 2;
  std::vector<float> cos, sin;
  for (int position = 0; position < config_.context; ++position) {
    for (int i = 0; i < half; ++i) {
      const double angle = position / std::pow(config_.rope_base, 2.0 * i / config_.head_dim);
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  rotary_ = {upload(std::span<const float>(cos)), upload(std::span<const float>(sin))};

  const auto width = [max_batch](int columns) { return static_cast<size_t>(max_batch) * columns; };
  tokens_ = allocate<uint8_t>(width(1));
  residual_ = allocate<float>(width(config_.dim));
  normed_ = allocate<float>(width(config_.dim));
  q_ = allocate<float>(width(shard_.heads.size() * config_.head_dim));
  k_ = allocate<float>(width(kv_heads * config_.head_dim));
  v_ = allocate<float>(width(kv_heads * config_.head_dim));
  heads_out_ = allocate<float>(width(shard_.heads.size() * config_.head_dim));
  router_logits_ = allocate<float>(width(config_.experts));
  routes_ = allocate<Route>(width(config_.experts_per_token));
  hidden_ = allocate<float>(width(config_.experts_per_token * shard_.hidden.size()));
  partial_ = allocate_registered(width(config_.dim));
  logits_.resize(width(config_.vocab));
  parts_.resize(width(shard_.vocab_stride) * shard_.size);
  logits_parts_ = allocate_registered(parts_.size());
  // The padding of a short vocabulary part is gathered too; it is never read.
  check(cudaMemset(logits_parts_, 0, parts_.size() * sizeof(float)), "clearing memory of the GPU");
  if (shard_.experts_split == Experts::kWhole && parallel.has_group()) {
    whole_experts_.emplace(parallel, config_, shard_.hidden.size(), max_batch);
  }
  check(cudaDeviceSynchronize(), "uploading the model");
}

CudaEngine::~CudaEngine() {
  (void)cudaStreamSynchronize(stream_);
  whole_experts_.reset();
  for (cudaEvent_t event : events_) (void)cudaEventDestroy(event);
  for (void* memory : registered_) (void)zbcclMemFree(memory);
  for (void* memory : owned_) (void)cudaFree(memory);
  (void)cudaStreamDestroy(stream_);
}

cudaEvent_t CudaEngine::next_event() {
  if (events_used_ == events_.size()) {
    cudaEvent_t event = nullptr;
    check(cudaEventCreate(&event), "an event");
    events_.push_back(event);
  }
  return events_[events_used_++];
}

// Timed on the stream: from when this rank comes to the call to when it goes on.
template <typename F>
void CudaEngine::timed(Collective which, size_t count, F&& call) {
  if (parallel_.communicator() == nullptr) return;
  const Timed item = {which, count, next_event(), next_event()};
  check(cudaEventRecord(item.before, stream_), "recording an event");
  zbcclCall_t how = ZBCCL_CALL_INITIALIZER;
  how.stream = stream_;
  zbccl::check(call(parallel_.communicator(), &how));
  check(cudaEventRecord(item.after, stream_), "recording an event");
  timed_.push_back(item);
}

// Waits for the stream, and accounts for what it has done.
void CudaEngine::settle() {
  check(cudaStreamSynchronize(stream_), "running the model");
  for (const Timed& item : timed_) {
    float ms = 0;
    check(cudaEventElapsedTime(&ms, item.before, item.after), "timing a collective");
    parallel_.account(item.which, item.count, ms / 1e3);
  }
  timed_.clear();
  events_used_ = 0;
}

void CudaEngine::all_reduce(Collective which, int tokens) {
  const size_t count = static_cast<size_t>(tokens) * config_.dim;
  timed(which, count, [&](zbcclComm_t comm, const zbcclCall_t* how) {
    return zbcclAllReduce(partial_, partial_, count, zbcclFloat32, zbcclSum, comm, how);
  });
}

std::span<const float> CudaEngine::forward(std::span<const Token> tokens, Want want) {
  const int count = size_of(tokens.size());
  if (count < 1 || count > max_batch_) {
    fail("a batch of {} tokens; the engine was made for 1 to {}", count, max_batch_);
  }
  if (length_ + count > config_.context) {
    fail("{} tokens after {} exceed the model's context of {}", count, length_, config_.context);
  }
  const int dim = config_.dim;
  const size_t elements = static_cast<size_t>(count) * dim;
  const auto eps = static_cast<float>(config_.norm_eps);
  check(cudaMemcpyAsync(tokens_, tokens.data(), tokens.size(), cudaMemcpyHostToDevice, stream_),
        "copying tokens to the GPU");
  cuda::embed(tokens_, embedding_, residual_, count, stream_);
  for (const Layer& layer : layers_) {
    cuda::rms_norm(residual_, layer.attention_norm, eps, normed_, dim, count, stream_);
    attention(layer, count);
    all_reduce(Collective::kAttention, count);
    cuda::add(partial_, residual_, elements, stream_);
    cuda::rms_norm(residual_, layer.expert_norm, eps, normed_, dim, count, stream_);
    experts(layer, count);
    cuda::add(partial_, residual_, elements, stream_);
  }
  length_ += count;
  return want == Want::kAllLogits ? project(0, count) : project(count - 1, 1);
}

// Leaves this rank's summand of the attention's output in partial_.
void CudaEngine::attention(const Layer& layer, int tokens) {
  const int head_dim = config_.head_dim;
  const int heads = shard_.heads.size();
  cuda::matmul(layer.q, normed_, q_, layer.q.rows, tokens, stream_);
  cuda::matmul(layer.k, normed_, k_, layer.k.rows, tokens, stream_);
  cuda::matmul(layer.v, normed_, v_, layer.v.rows, tokens, stream_);
  cuda::rotate_and_keep(q_, k_, v_, rotary_, layer.cache, heads, head_dim, length_, tokens,
                        stream_);
  const cuda::HeadMap map = {shard_.heads.begin, config_.queries_per_kv_head(),
                             shard_.kv_heads.begin};
  cuda::attend(q_, layer.cache, map, heads, head_dim, length_, tokens, heads_out_, stream_);
  cuda::matmul(layer.out, heads_out_, partial_, config_.dim, tokens, stream_);
}

// Leaves the experts' output in partial_. Every rank routes alike, because the normed stream has
// the same bits everywhere.
void CudaEngine::experts(const Layer& layer, int tokens) {
  cuda::matmul(layer.router, normed_, router_logits_, config_.experts, tokens, stream_);
  cuda::route(router_logits_, config_.experts, config_.experts_per_token, routes_, tokens, stream_);
  whole_experts_ ? whole_experts(layer, tokens) : sliced_experts(layer, tokens);
}

// Every rank sums its slice of every expert.
void CudaEngine::sliced_experts(const Layer& layer, int tokens) {
  const int used = config_.experts_per_token;
  const int width = shard_.hidden.size();
  cuda::run_gates(layer.experts, routes_, used, width, config_.dim, normed_, hidden_, tokens,
                  stream_);
  cuda::run_downs(layer.experts, routes_, used, width, config_.dim, hidden_, partial_, tokens,
                  stream_);
  all_reduce(Collective::kExperts, tokens);
}

// As Engine::whole_experts.
void CudaEngine::whole_experts(const Layer& layer, int tokens) {
  const auto dim = static_cast<size_t>(config_.dim);
  std::vector<size_t> counts;
  for (int rank = 0; rank < shard_.size; ++rank) {
    counts.push_back(static_cast<size_t>(part(tokens, shard_.size, rank).size()) * dim);
  }
  const Range mine = part(tokens, shard_.size, shard_.rank);
  const size_t first = static_cast<size_t>(mine.begin) * dim;
  const size_t count = counts[static_cast<size_t>(shard_.rank)];
  timed(Collective::kDispatch, count, [&](zbcclComm_t, const zbcclCall_t* how) {
    const Route* const routes =
        routes_ + static_cast<size_t>(mine.begin) * config_.experts_per_token;
    whole_experts_->dispatch(normed_ + first, routes, mine.size(), how);
    return zbcclSuccess;
  });
  whole_experts_->run(layer.experts, tokens, stream_);
  timed(Collective::kCombine, count, [&](zbcclComm_t, const zbcclCall_t* how) {
    whole_experts_->combine(partial_ + first, how);
    return zbcclSuccess;
  });
  timed(Collective::kTokens, count, [&](zbcclComm_t comm, const zbcclCall_t* how) {
    return zbcclAllGatherV(partial_ + first, partial_, counts.data(), nullptr, zbcclFloat32, comm,
                           how);
  });
}

// As Engine::project.
std::span<const float> CudaEngine::project(int first, int tokens) {
  const int dim = config_.dim;
  const size_t stride = shard_.vocab_stride;
  const size_t count = tokens * stride;
  cuda::rms_norm(residual_ + static_cast<size_t>(first) * dim, norm_,
                 static_cast<float>(config_.norm_eps), normed_, dim, tokens, stream_);
  float* const mine = logits_parts_ + shard_.rank * count;
  cuda::matmul(head_, normed_, mine, shard_.vocab_stride, tokens, stream_);
  timed(Collective::kLogits, count, [&](zbcclComm_t comm, const zbcclCall_t* how) {
    return zbcclAllGather(mine, logits_parts_, count, zbcclFloat32, comm, how);
  });
  check(cudaMemcpyAsync(parts_.data(), logits_parts_, shard_.size * count * sizeof(float),
                        cudaMemcpyDeviceToHost, stream_),
        "copying logits from the GPU");
  check(cudaGetLastError(), "launching the model's kernels");
  settle();
  for (int r = 0; r < shard_.size; ++r) {
    const Range range = part(config_.vocab, shard_.size, r);
    for (int t = 0; t < tokens; ++t) {
      std::copy_n(parts_.begin() + static_cast<std::ptrdiff_t>(r * count + t * stride),
                  range.size(),
                  logits_.begin() + static_cast<std::ptrdiff_t>(t) * config_.vocab + range.begin);
    }
  }
  return std::span<const float>(logits_).first(static_cast<size_t>(tokens) * config_.vocab);
}

}  // namespace llm
