#include "cuda_expert_parallel.h"

#include <algorithm>

#include "error.h"

namespace llm {
namespace {

template <typename T>
T* allocate(size_t count) {
  int device = 0;
  if (const cudaError_t code = cudaGetDevice(&device); code != cudaSuccess) {
    fail("the current GPU: {}", cudaGetErrorString(code));
  }
  void* memory = nullptr;
  zbccl::check(zbcclMemAllocDevice(&memory, std::max<size_t>(count, 1) * sizeof(T), device));
  return static_cast<T*>(memory);
}

}  // namespace

CudaExpertParallel::CudaExpertParallel(Parallel& parallel, const Config& config, int width,
                                       int max_tokens)
    : dim_(config.dim), topk_(config.experts_per_token), width_(width), capacity_(max_tokens) {
  constexpr size_t kRowUnit = 16;  // bytes
  if (dim_ * sizeof(float) % kRowUnit != 0) {
    fail("expert-parallel: rows of {} values; zbccl dispatches rows of a multiple of {} bytes",
         dim_, kRowUnit);
  }
  moe_ = zbccl::Moe(parallel.group(), config.experts);
  local_ = static_cast<int>(moe_.local_experts().size());
  const size_t slots = static_cast<size_t>(max_tokens) * static_cast<size_t>(topk_);
  const size_t rows = static_cast<size_t>(local_) * static_cast<size_t>(capacity_);
  chosen_ = allocate<int32_t>(slots);
  weights_ = allocate<float>(slots);
  counts_ = allocate<int32_t>(static_cast<size_t>(local_));
  arrived_ = allocate<float>(rows * static_cast<size_t>(dim_));
  hidden_ = allocate<float>(rows * static_cast<size_t>(width_));
  results_ = allocate<float>(rows * static_cast<size_t>(dim_));
}

CudaExpertParallel::~CudaExpertParallel() {
  for (void* memory :
       {static_cast<void*>(chosen_), static_cast<void*>(weights_), static_cast<void*>(counts_),
        static_cast<void*>(arrived_), static_cast<void*>(hidden_), static_cast<void*>(results_)}) {
    (void)zbcclMemFree(memory);
  }
}

void CudaExpertParallel::dispatch(const float* tokens, const Route* routes, int n,
                                  const zbcclCall_t* how) {
  cuda::split_routes(routes, chosen_, weights_, n * topk_, static_cast<cudaStream_t>(how->stream));
  zbcclMoeRouting_t routing = zbccl::moe_routing(chosen_, n, topk_, zbcclMoeExpertMasked);
  routing.capacity = capacity_;
  routing.recv_counts = counts_;
  handle_ = moe_.route(routing, how);
  zbcclMoeDispatch_t args = zbccl::moe_dispatch();
  args.type = zbcclFloat32;
  args.hidden = dim_;
  args.x = tokens;
  args.recv_x = arrived_;
  handle_.dispatch(args, how);
}

void CudaExpertParallel::run(const cuda::DeviceExpert* experts, int most, cudaStream_t on) {
  const cuda::Arrived rows = {counts_, local_, capacity_, most};
  const int dim = static_cast<int>(dim_);
  cuda::run_gates_of_rows(experts, rows, width_, dim, arrived_, hidden_, on);
  cuda::run_downs_of_rows(experts, rows, width_, dim, hidden_, results_, on);
}

void CudaExpertParallel::combine(float* sums, const zbcclCall_t* how) {
  zbcclMoeCombine_t args = zbccl::moe_combine();
  args.type = zbcclFloat32;
  args.hidden = dim_;
  args.y = results_;
  args.topk_weights = weights_;
  args.out = sums;
  handle_.combine(args, how);
}

}  // namespace llm
