// One rank's dispatch and combine of a batch by zbccl, with the memory that they work on. One
// thread; every call is collective.
#pragma once

#include <optional>
#include <zbccl/moe.hpp>

#include "measure/buffers.h"
#include "moe_perf/batch.h"
#include "moe_perf/compare.h"
#include "moe_perf/device.h"
#include "moe_perf/expected.h"
#include "moe_perf/options.h"
#include "moe_perf/placement.h"

namespace zbccl::tools {

class MoeExchange {
 public:
  // `device`: null where the arrays lie in host memory. What the checks see is host memory always.
  MoeExchange(Communicator& comm, const MoeOptions& options, const MoeShape& shape,
              MoeDevice* device);

  // Takes a batch: fills the inputs, routes it once, and makes the outputs as large as it needs.
  void load(const Batch& batch);
  // Writes over every output.
  void poison_outputs();
  // Waits for the calls and brings their outputs to where the checks look.
  void fetch_outputs();

  // Routes anew unless the handle is to be kept.
  void dispatch();
  // After a dispatch().
  void combine();

  const MoeInputs& inputs() const { return inputs_; }
  Dispatched outputs() const { return outputs_; }
  const Placement& placement() const { return *placement_; }
  // Bytes of a zbcclMoeExpertMasked's free rows that were written since poison_outputs().
  uint64_t wrong_gaps() const;
  // Whether the handle says what the batch's placement is.
  uint64_t wrong_info() const;
  zbcclMoeReport_t report() const { return moe_.report(); }

 private:
  // Memory that grows, and what of it is in use; with a twin on the GPU, if there is one.
  class Area {
   public:
    void* take(size_t bytes, bool registered, MoeDevice* device);
    // What the library gets.
    void* given() const { return twin_ != nullptr ? twin_->data() : here(); }
    void* here() const { return memory_ ? memory_->data() : nullptr; }
    void poison() const;
    void upload() const;
    void download() const;

   private:
    std::optional<Memory> memory_;
    std::unique_ptr<MoeDevice::Twin> twin_;
    size_t room_ = 0;
    size_t used_ = 0;
  };

  void fill(const Batch& batch);
  // The codes and scales that a dispatch is given in the place of the tokens.
  void quantize_tokens(const std::byte* x);
  const zbcclCall_t* how() const { return device_ != nullptr ? device_->call() : nullptr; }

  const MoeOptions& options_;
  MoeDevice* device_;
  MoeShape shape_;
  int rank_;
  Moe moe_;
  MoeHandle handle_;
  std::optional<Placement> placement_;
  Area tokens_, codes_, code_scales_, topk_, weights_, results_, combined_;
  Area rows_, scales_, recv_idx_, recv_weights_, row_weights_, src_idx_;
  MoeInputs inputs_;
  Dispatched outputs_;
  zbcclMoeRouting_t routing_ = moe_routing();
  zbcclMoeDispatch_t dispatch_ = moe_dispatch();
  zbcclMoeCombine_t combine_ = moe_combine();
};

}  // namespace zbccl::tools
