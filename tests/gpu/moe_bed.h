// Cases of dispatch and combine on memory of a rank's GPU.
#pragma once

#include "gpu/gpu_job.h"
#include "multirank/moe_case.h"

namespace zbccl::test {

class GpuBed final : public MoeBed {
 public:
  // Calls are enqueued on the rank's stream.
  explicit GpuBed(GpuRank& rank) : rank_(rank), call_(rank.call()) {}
  MoeArray make(const MoeCase& what, size_t bytes, Holds holds) override;
  const zbcclCall_t* call() const override { return &call_; }
  zbcclCall_t& call() { return call_; }
  // See GpuRank: only ranks that share a GPU go in step.
  void settle() override {
    if (rank_.place() == Place::kOneGpu) rank_.settle();
  }

 private:
  GpuRank& rank_;
  zbcclCall_t call_;
};

}  // namespace zbccl::test
