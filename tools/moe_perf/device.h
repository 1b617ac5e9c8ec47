// A rank's GPU in `zbccl moe --device cuda`. A command built without CUDA has the same functions,
// which refuse. One thread.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <zbccl/zbccl.hpp>

#include "measure/series.h"
#include "moe_perf/options.h"

namespace zbccl::tools {

class MoeDevice {
 public:
  // Memory of the GPU.
  class Twin {
   public:
    virtual ~Twin() = default;
    virtual void* data() const = 0;
    // Wait for everything that was enqueued before.
    virtual void upload(const void* from, size_t bytes) = 0;
    virtual void download(void* to, size_t bytes) = 0;
  };
  // The times of one phase's calls, by the GPU's clock.
  class Series {
   public:
    virtual ~Series() = default;
    virtual int calls() const = 0;  // in all
    // Collective: a share of them, of as many as there are rounds.
    virtual void run(Communicator& control) = 0;
    virtual Timing timing(Communicator& control) const = 0;
  };

  virtual ~MoeDevice() = default;
  // A communicator of the same ranks that serves the GPUs.
  virtual Communicator& comm() = 0;
  // How calls are made: on this rank's stream.
  virtual const zbcclCall_t* call() const = 0;
  virtual std::unique_ptr<Twin> make(size_t bytes) = 0;
  virtual void wait() = 0;
  // Collective. `call` enqueues one call; `graph`: it can be captured, and replays are timed.
  virtual std::unique_ptr<Series> time(Communicator& control, std::function<void()> call,
                                       bool graph, int rounds) = 0;
};

// Collective over the ranks of `control`, which serves host memory.
std::unique_ptr<MoeDevice> open_moe_device(Communicator& control, const MoeOptions& options);
// GPUs that can be used; throws UsageError where there is none. Asked in a process of its own.
int count_moe_devices();

}  // namespace zbccl::tools
