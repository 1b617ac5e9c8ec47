// Runs a communicator's calls on device memory: resolves buffers, chooses the algorithm, launches.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "collectives/cuda/completion.h"
#include "collectives/cuda/copy_streams.h"
#include "collectives/device_engine.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/push.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/transfer.h"
#include "plan/device_plan.h"
#include "transport/cuda/device_team.h"

namespace zbccl::cuda {

using collectives::Collective;

class Engine final : public collectives::DeviceEngine {
 public:
  // Null on every rank where a GPU does not reach another one's memory, with the reason in
  // *unreached.
  static Result<std::unique_ptr<Engine>> create(transport::Team& team,
                                                const collectives::EngineOptions& options,
                                                const collectives::Exchange& exchange,
                                                std::string* unreached);
  ~Engine() override;

  int device() const override { return team_->device(); }
  std::string unreached() const override { return ""; }
  Status run(const Collective& call) override;
  Status transfer(std::span<const collectives::DeviceTransfer> transfers,
                  const collectives::Launch& how) override;
  Result<collectives::Completion> completion(void* stream) override {
    return stream_completion(device(), static_cast<cudaStream_t>(stream));
  }
  const char* last_algorithm() const override { return plan::algorithm_name(algorithm_); }
  void abort() override { team_->abort(); }
  Status state() override { return team_->state(); }
  Status take_failure(void* stream) override;
  std::function<void()> take_arena() override { return team_->take_arena(); }

  // --- for operations that stand beside the collectives ---

  // One of this rank's buffers as the call uses it: where it lies, or, where peers cannot reach
  // that, a copy in registered memory.
  struct Operand {
    char* data = nullptr;
    Place place;
    bool staged = false;
  };

  DeviceTeam& team() { return *team_; }
  // The failure of this rank's kernels, or of the host's team.
  Status check_alive();
  // Runs `body`, which enqueues kernels of the team on `stream`, behind what the team has enqueued
  // elsewhere, with the GPU current.
  Status enqueue(cudaStream_t stream, const std::function<Status()>& body);
  // For peers to read or write; within enqueue(). A staged output is filled, too: a call that fails
  // writes nothing, and its output goes back as it came.
  Status open_input(const void* data, size_t bytes, cudaStream_t stream, Operand* operand);
  Status open_output(void* data, size_t bytes, Operand* operand) {
    return open_input(data, bytes, stream_now_, operand);
  }
  Status close_output(const Operand& operand, void* data, size_t bytes, cudaStream_t stream);
  // Thread blocks that a call may have; 0: as many as it likes.
  int block_limit(const collectives::Launch& launch) const {
    const int asked = launch.max_blocks > 0 ? launch.max_blocks : max_blocks_;
    return share_ > 0 && (asked == 0 || asked > share_) ? share_ : asked;
  }

 private:
  Engine() = default;
  Status dispatch(const Collective& call, cudaStream_t stream);
  Status copy_alone(const Collective& call, cudaStream_t stream);
  // The plan of a call, and what the ranks compare of it.
  plan::DevicePlan plan_for(const Collective& call, uint64_t bytes, uint64_t longest = 0,
                            uint64_t share = 0);
  Entry entry_for(const Collective& call, const plan::DevicePlan& plan, uint64_t bytes) const;
  LaunchShape shape_of(const plan::DevicePlan& plan, cudaStream_t stream) const;

  Result<char*> stage(size_t bytes);

  Status reduce(const Collective& call, cudaStream_t stream);  // reductions.cc
  Status spread_slices(const Collective& call, const ReduceArgs& reduced, const Operand& out,
                       bool around, cudaStream_t stream);
  Status move(const Collective& call, cudaStream_t stream);  // movements.cc
  Status broadcast(const Collective& call, cudaStream_t stream);
  Status ring(const Collective& call, const plan::DevicePlan& plan, cudaStream_t stream);
  // Of `args` everything but the call and the piece is set; `place`: of the output.
  Status send_around(const Collective& call, const plan::DevicePlan& plan, RingArgs& args,
                     const Place& place, cudaStream_t stream);
  Status swap(const Collective& call, const plan::DevicePlan& plan, cudaStream_t stream);
  // copy_engine.cc: what `args` pushes
  Status copy(const Collective& call, const PushArgs& args, cudaStream_t stream);
  Status go_in_step(Milliseconds timeout);
  Status reduce_norm(const Collective& call, cudaStream_t stream);  // fused.cc
  Status reduce_quantized(const Collective& call, cudaStream_t stream);
  Status transfer_with_self(std::span<const collectives::DeviceTransfer> transfers,
                            cudaStream_t stream);  // transfers.cc
  LaunchShape spread(TransferArgs& args, const collectives::Launch& how, cudaStream_t stream) const;

  std::unique_ptr<DeviceTeam> team_;
  collectives::Meeting meeting_;
  std::unique_ptr<CopyStreams> copy_streams_;  // where the tuning asks for copy engines
  plan::DeviceTuning tuning_;
  int max_blocks_ = 0;
  int share_ = 0;  // blocks of this rank that fit on a GPU beside those of the others there; 0: all
  cudaStream_t stream_now_ = nullptr;  // of the call that is being enqueued
  plan::DeviceAlgorithm algorithm_ = plan::DeviceAlgorithm::kNone;
  // Registered memory for buffers that peers cannot reach; one for each such buffer of a call.
  struct Staging {
    void* data = nullptr;
    size_t bytes = 0;
  };
  std::vector<Staging> staging_;
  size_t staged_now_ = 0;  // of this call
};

}  // namespace zbccl::cuda
