#include "expert_parallel.h"

#include "error.h"

namespace llm {

ExpertParallel::ExpertParallel(Parallel& parallel, const Config& config, int max_tokens)
    : parallel_(parallel), dim_(config.dim), topk_(config.experts_per_token) {
  constexpr size_t kRowUnit = 16;  // bytes
  if (dim_ * sizeof(float) % kRowUnit != 0) {
    fail("expert-parallel: rows of {} values; zbccl dispatches rows of a multiple of {} bytes",
         dim_, kRowUnit);
  }
  moe_ = zbccl::Moe(parallel.group(), config.experts);
  const size_t slots = static_cast<size_t>(max_tokens) * static_cast<size_t>(topk_);
  chosen_ = zbccl::Buffer<int32_t>(slots);
  weights_ = zbccl::Buffer<float>(slots);
  arrived_ = Parallel::allocate(slots * static_cast<size_t>(dim_));
  results_ = Parallel::allocate(arrived_.size());
}

void ExpertParallel::dispatch(std::span<const float> tokens, std::span<const Route> routes) {
  for (size_t i = 0; i < routes.size(); ++i) {
    chosen_[i] = routes[i].expert;
    weights_[i] = routes[i].weight;
  }
  parallel_.timed(Collective::kDispatch, tokens.size(), [&] {
    const auto count = static_cast<int64_t>(routes.size()) / topk_;
    handle_ = moe_.route(zbccl::moe_routing(chosen_.data(), count, topk_, zbcclMoeExpertMajor));
    zbcclMoeDispatch_t args = zbccl::moe_dispatch();
    args.type = zbcclFloat32;
    args.hidden = dim_;
    args.x = tokens.data();
    args.recv_x = arrived_.data();
    handle_.dispatch(args);
  });
}

ExpertParallel::Rows ExpertParallel::rows_of(int local) {
  const zbcclMoeInfo_t info = handle_.info();
  const auto begin = static_cast<size_t>(info.expert_offsets[local] * dim_);
  const auto size = static_cast<size_t>(info.expert_counts[local] * dim_);
  return {info.expert_counts[local], arrived_.span().subspan(begin, size),
          results_.span().subspan(begin, size)};
}

void ExpertParallel::combine(std::span<float> sums) {
  parallel_.timed(Collective::kCombine, sums.size(), [&] {
    zbcclMoeCombine_t args = zbccl::moe_combine();
    args.type = zbcclFloat32;
    args.hidden = dim_;
    args.y = results_.data();
    args.topk_weights = weights_.data();
    args.out = sums.data();
    handle_.combine(args);
  });
}

}  // namespace llm
