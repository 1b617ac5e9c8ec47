// Expert parallelism for C++20: owners and calls over moe.h, header-only. Failures throw
// zbccl::Error. The arguments are the structs of moe.h, made by their functions here.
//
//   auto moe = zbccl::Moe(comm, 256);
//   auto handle = moe.route(zbccl::moe_routing(topk_idx, tokens, topk, zbcclMoeExpertMajor));
//   auto x_here = zbccl::Buffer<Bf16>(handle.info().allocated_rows * hidden);
//   handle.dispatch(args);
//   handle.combine(args);
#pragma once

#include <zbccl/moe.h>

#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>
#include <zbccl/zbccl.hpp>

namespace zbccl {

// Structs with every field at its default.
inline zbcclMoeRouting_t moe_routing() { return ZBCCL_MOE_ROUTING_INITIALIZER; }
inline zbcclMoeDispatch_t moe_dispatch() { return ZBCCL_MOE_DISPATCH_INITIALIZER; }
inline zbcclMoeCombine_t moe_combine() { return ZBCCL_MOE_COMBINE_INITIALIZER; }

// `Index`: int32_t or int64_t.
template <typename Index>
zbcclMoeRouting_t moe_routing(const Index* topk_idx, int64_t tokens, int topk,
                              zbcclMoeLayout_t layout) {
  static_assert(std::is_same_v<Index, int32_t> || std::is_same_v<Index, int64_t>);
  zbcclMoeRouting_t routing = moe_routing();
  routing.topk_idx = topk_idx;
  routing.num_tokens = tokens;
  routing.num_topk = topk;
  routing.idx_type = TypeOf<Index>::value;
  routing.layout = layout;
  return routing;
}

// Where the rows of one routing go. Move-only; stale once its Moe is destroyed.
class MoeHandle {
 public:
  MoeHandle() = default;
  explicit MoeHandle(zbcclMoeHandle_t handle) : handle_(handle) {}

  zbcclMoeInfo_t info() const {
    zbcclMoeInfo_t info = ZBCCL_MOE_INFO_INITIALIZER;
    check(zbcclMoeHandleGetInfo(get(), &info));
    return info;
  }
  void dispatch(const zbcclMoeDispatch_t& args, const zbcclCall_t* call = nullptr) {
    check(zbcclMoeDispatch(get(), &args, call));
  }
  Work dispatch_async(const zbcclMoeDispatch_t& args) {
    zbcclWork_t work = nullptr;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.work = &work;
    dispatch(args, &call);
    return Work(work);
  }
  void combine(const zbcclMoeCombine_t& args, const zbcclCall_t* call = nullptr) {
    check(zbcclMoeCombine(get(), &args, call));
  }
  Work combine_async(const zbcclMoeCombine_t& args) {
    zbcclWork_t work = nullptr;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.work = &work;
    combine(args, &call);
    return Work(work);
  }
  zbcclMoeHandle_t get() const noexcept { return handle_.get(); }
  bool valid() const noexcept { return handle_ != nullptr; }

 private:
  struct Free {
    void operator()(zbcclMoeHandle_t handle) const noexcept { (void)zbcclMoeHandleDestroy(handle); }
  };
  std::unique_ptr<std::remove_pointer_t<zbcclMoeHandle_t>, Free> handle_;
};

// Which rank holds which expert. Move-only; destroyed before its communicator.
class Moe {
 public:
  Moe() = default;
  // Collective. `expert_ranks`: the rank of each expert; empty: contiguous blocks.
  Moe(const Communicator& comm, int num_experts, std::span<const int32_t> expert_ranks = {}) {
    zbcclMoeConfig_t config = ZBCCL_MOE_CONFIG_INITIALIZER;
    config.num_experts = num_experts;
    config.expert_ranks = expert_ranks.empty() ? nullptr : expert_ranks.data();
    zbcclMoe_t moe = nullptr;
    check(zbcclMoeCreate(&moe, comm.get(), &config, nullptr));
    moe_.reset(moe);
  }

  MoeHandle route(const zbcclMoeRouting_t& routing, const zbcclCall_t* call = nullptr) {
    zbcclMoeHandle_t handle = nullptr;
    check(zbcclMoeRoute(get(), &routing, &handle, call));
    return MoeHandle(handle);
  }
  // The numbers of this rank's experts; valid as long as this.
  std::span<const int32_t> local_experts() const {
    int32_t count = 0;
    const int32_t* experts = nullptr;
    check(zbcclMoeGetLocalExperts(get(), &count, &experts));
    return {experts, static_cast<size_t>(count)};
  }
  void set_mask(int rank, bool masked) { check(zbcclMoeSetMask(get(), rank, masked ? 1 : 0)); }
  zbcclMoeReport_t report() const {
    zbcclMoeReport_t report = ZBCCL_MOE_REPORT_INITIALIZER;
    check(zbcclMoeGetReport(get(), &report));
    return report;
  }
  zbcclMoe_t get() const noexcept { return moe_.get(); }
  bool valid() const noexcept { return moe_ != nullptr; }

 private:
  struct Free {
    void operator()(zbcclMoe_t moe) const noexcept { (void)zbcclMoeDestroy(moe); }
  };
  std::unique_ptr<std::remove_pointer_t<zbcclMoe_t>, Free> moe_;
};

}  // namespace zbccl
