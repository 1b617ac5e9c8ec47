// Calls on device memory where the GPUs do not reach each other's: each goes through host memory,
// in the order in which they are made. The caller's stream is held by a kernel of one thread; the
// communicator's thread for collectives waits for what was enqueued before, copies the inputs to
// memory of the pool, runs the call there, copies the outputs back and lets the stream go
// on. All of it is counted as staged, and what the largest call took is kept.
//
// One thread at a time, as the communicator; abort() and state() any thread.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "collectives/cuda/bounce.h"
#include "collectives/cuda/buffers.h"
#include "collectives/cuda/completion.h"
#include "collectives/cuda/mirror.h"
#include "collectives/device_engine.h"
#include "transport/cuda/stream_order.h"

namespace zbccl::cuda {

class HostEngine final : public collectives::DeviceEngine {
 public:
  // `why` the GPUs' memory is not mapped, for messages.
  static Result<std::unique_ptr<HostEngine>> create(transport::Team& team,
                                                    const collectives::EngineOptions& options,
                                                    std::string why);
  // After everything that was posted.
  ~HostEngine() override;

  int device() const override { return device_; }
  std::string unreached() const override { return why_; }
  Status run(const collectives::Collective& call) override;
  Status transfer(std::span<const collectives::DeviceTransfer> transfers,
                  const collectives::Launch& how) override;
  Result<collectives::Completion> completion(void* stream) override {
    return stream_completion(device_, static_cast<cudaStream_t>(stream));
  }
  const char* last_algorithm() const override { return "host_staged"; }
  void abort() override {}  // the team's failure ends every wait
  Status state() override;
  Status take_failure(void* stream) override;
  std::function<void()> take_arena() override {
    return [] {};
  }

 private:
  // One call on its way. Used by the thread that runs it.
  struct Job {
    SharedEvent ready;    // what was enqueued before the call is over
    uint32_t number = 0;  // of the gate
    uint32_t era = 0;
    // A call of all ranks: after one on which they do not agree, those that follow are left out
    // until the error has been returned.
    bool collective = true;
    CallRanges ranges;
    std::function<Status(const Mirror& mirror)> body;
  };

  HostEngine(transport::Team& team, int device) : team_(team), device_(device) {}
  Status open();
  Status post(const std::shared_ptr<Job>& job, cudaStream_t stream);

  // On the communicator's thread.
  void work(const Job& job);
  bool is_left_out(const Job& job);
  Status carry_out(const Job& job);
  Status await(const SharedEvent& event) const;
  std::vector<Bounce::Piece> pieces_of(const std::vector<DeviceRange>& ranges,
                                       const Mirror& mirror);
  Result<void*> staging(size_t bytes);
  void free_staging();

  transport::Team& team_;
  int device_;
  collectives::HostPath path_;
  std::string why_;
  StreamOrder order_;
  uint32_t posted_ = 0;
  uint32_t* done_ = nullptr;  // pinned: number of the last job that is over
  Bounce bounce_;
  void* staging_ = nullptr;  // a block of the pool
  size_t staging_bytes_ = 0;

  std::mutex mutex_;  // guards what follows
  Status failure_;    // not returned by a call yet
  bool leaving_out_ = false;
  uint32_t era_ = 0;  // how often calls were left out
};

}  // namespace zbccl::cuda
