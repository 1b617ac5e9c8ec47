// What a communicator does with memory of its GPU: the seam between the communicator, which knows
// no CUDA, and src/collectives/cuda, which a build without CUDA leaves out.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "collectives/collective.h"
#include "plan/tuning_file.h"
#include "transport/team.h"

namespace zbccl::collectives {

// One send or receive of device memory.
struct DeviceTransfer {
  bool is_send = false;
  void* data = nullptr;  // only read if is_send
  size_t bytes = 0;
  int peer = 0;
  DataType type = DataType::kU8;
};

// True once what it was made for is over, with the result in *status. Any thread.
using Completion = std::function<bool(Status* status)>;

// One thread at a time, as the communicator; abort() and state() any thread.
class DeviceEngine {
 public:
  virtual ~DeviceEngine() = default;

  virtual int device() const = 0;
  // Why not all GPUs reach each other's memory, so that calls go through host memory; "" if they
  // do.
  virtual std::string unreached() const = 0;
  // Enqueues the call on its stream. kInvalidArgument where its buffers are not all memory of this
  // GPU.
  virtual Status run(const Collective& call) = 0;
  // Enqueues all of them on `stream` as one.
  virtual Status transfer(std::span<const DeviceTransfer> transfers, const Launch& how) = 0;
  // For what has been enqueued on `stream` so far.
  virtual Result<Completion> completion(void* stream) = 0;
  virtual const char* last_algorithm() const = 0;

  // Ends the waits of kernels that run, and of those that follow.
  virtual void abort() = 0;
  // The first failure that a kernel has found, told to the team as well.
  virtual Status state() = 0;
  // The failure that a call on `stream` has to return, if there is one. run() and transfer() begin
  // with it. That the ranks' calls did not agree is returned once, and what comes after it works.
  virtual Status take_failure(void* stream) = 0;
  // At the end of the communicator's life, by the thread that makes its calls: returns once none of
  // the communicator's threads waits for the GPU any more.
  virtual void settle() {}
  // What gives its memory back, to be called once every peer has left.
  virtual std::function<void()> take_arena() = 0;
};

// Every rank brings `bytes` bytes and gets everyone's, by rank.
using Exchange = std::function<Status(const void* mine, void* all, size_t bytes)>;

// What an engine does on host memory where GPUs do not reach each other's. `run` and `transfer` are
// called by what is posted, which the communicator runs in order, on a thread of its own.
struct HostPath {
  std::function<void(std::function<void()> work)> post;
  std::function<Status(const Collective& call)> run;
  std::function<Status(std::span<const DeviceTransfer> transfers)> transfer;
};

// Every rank brings `bytes` bytes and gets everyone's, by rank; at any time, on the thread that
// makes the calls, in their order.
using Meeting =
    std::function<Status(const void* mine, void* all, size_t bytes, Milliseconds timeout)>;

struct EngineOptions {
  int device = -1;  // of this rank; negative: none
  int max_blocks = 0;
  Deadline deadline = Deadline::never();
  HostPath host;
  Meeting meeting;
  plan::TuningTable tuning;  // of this machine; rank 0's counts, the others may leave it empty
};

// Collective. Null where no rank has a GPU; an error on every rank where some have none, or one
// could not be used.
Result<std::unique_ptr<DeviceEngine>> make_device_engine(transport::Team& team,
                                                         const EngineOptions& options,
                                                         const Exchange& exchange);

}  // namespace zbccl::collectives
