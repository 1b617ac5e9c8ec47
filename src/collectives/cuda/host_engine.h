// Calls on device memory where the GPUs do not reach each other's: each goes through host memory,
// in the order in which they are made. On the caller's stream a kernel brings the inputs to pinned
// memory, one of one thread waits, and a third writes the outputs; the communicator's thread for
// collectives takes the inputs to memory of the pool, runs the call there, hands the outputs over
// and lets the stream go on. All of it is counted as staged, and what the largest call took is
// kept.
//
// One thread at a time, as the communicator; abort() and state() any thread.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "collectives/cuda/buffers.h"
#include "collectives/cuda/completion.h"
#include "collectives/cuda/courier.h"
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
  void settle() override;
  std::function<void()> take_arena() override {
    return [] {};
  }

 private:
  // One call on its way. Used by the thread that runs it.
  struct Job {
    Courier::Trip trip;
    Status sent;  // an error: the GPU does not carry all of it
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
  // Finds out whether what was sent has come to an end that is no success.
  void look_for_error();

  // On the communicator's thread.
  void work(const Job& job);
  bool is_left_out(const Job& job);
  Status carry_out(const Job& job);
  // Whether to wait for the GPU any longer.
  Status check_going() const;
  void count(const std::vector<DeviceRange>& ranges);
  Result<void*> staging(size_t bytes);
  void free_staging();

  transport::Team& team_;
  int device_;
  collectives::HostPath path_;
  std::string why_;
  StreamOrder order_;
  Courier courier_;
  cudaEvent_t sent_ = nullptr;  // behind the last job
  std::atomic<cudaError_t> broken_{cudaSuccess};
  uint32_t posted_ = 0;
  std::atomic<uint32_t> finished_{0};
  void* staging_ = nullptr;  // a block of the pool
  size_t staging_bytes_ = 0;

  std::mutex mutex_;  // guards what follows
  Status failure_;    // not returned by a call yet
  bool leaving_out_ = false;
  uint32_t era_ = 0;  // how often calls were left out
};

}  // namespace zbccl::cuda
