#include <fmt/core.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "command.h"
#include "moe_perf/device.h"
#include "perf/cuda_perf.h"
#include "perf/cuda_runtime.h"
#include "perf/cuda_series.h"

namespace zbccl::tools {
namespace {

constexpr int64_t kTimeoutMs = 60'000;

zbcclUniqueId agree_on_id(Communicator& control) {
  Buffer<std::byte> shared(sizeof(zbcclUniqueId));
  zbcclUniqueId id = {};
  if (control.rank() == 0) check(zbcclGetUniqueId(&id));
  std::memcpy(shared.data(), &id, sizeof id);
  control.broadcast(shared.span(), 0);
  std::memcpy(&id, shared.data(), sizeof id);
  return id;
}

int device_of(int rank) {
  int gpus = 0;
  check_cuda(cudaGetDeviceCount(&gpus), "cudaGetDeviceCount");
  const char* const local = std::getenv("ZBCCL_LOCAL_RANK");
  const char* const other = std::getenv("LOCAL_RANK");
  const char* const text = local != nullptr ? local : other;
  return (text != nullptr ? std::atoi(text) : rank) % (gpus > 0 ? gpus : 1);
}

int use(int device) {
  check_cuda(cudaSetDevice(device), "cudaSetDevice");
  check_cuda(cudaFree(nullptr), "cudaFree");
  return device;
}

class CudaTwin final : public MoeDevice::Twin {
 public:
  CudaTwin(const CudaStream& stream, size_t bytes, DeviceMemoryKind kind, int device)
      : stream_(stream), memory_(bytes, kind, device) {}
  void* data() const override { return memory_.data(); }
  void upload(const void* from, size_t bytes) override {
    copy(memory_.data(), from, bytes, cudaMemcpyHostToDevice);
  }
  void download(void* to, size_t bytes) override {
    copy(to, memory_.data(), bytes, cudaMemcpyDeviceToHost);
  }

 private:
  void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) const {
    if (bytes > 0) {
      check_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream_.get()), "cudaMemcpyAsync");
    }
    stream_.wait();
  }

  const CudaStream& stream_;
  CudaMemory memory_;
};

class CudaTimes final : public MoeDevice::Series {
 public:
  CudaTimes(Communicator& control, const CudaStream& stream, const std::function<void()>& call,
            bool graph, const PerfOptions& options, int rounds)
      : plan_(plan_series(control, stream, call, options, rounds)),
        rounds_(rounds),
        series_(stream, call, plan_.calls, graph) {}
  int calls() const override { return plan_.calls * plan_.replays * rounds_; }
  void run(Communicator& control) override { series_.run(control, plan_.replays); }
  Timing timing(Communicator& control) const override { return series_.timing(control); }

 private:
  CudaPlan plan_;
  int rounds_;
  CudaSeries series_;
};

class CudaDevice final : public MoeDevice {
 public:
  CudaDevice(Communicator& control, const MoeOptions& options)
      : options_(options),
        device_(use(device_of(control.rank()))),
        comm_(connect(control, options, device_)) {
    call_.stream = stream_.get();
    call_.max_blocks = options.max_blocks;
  }
  Communicator& comm() override { return comm_; }
  const zbcclCall_t* call() const override { return &call_; }
  std::unique_ptr<Twin> make(size_t bytes) override {
    const auto kind = options_.unregistered ? DeviceMemoryKind::kPlain : DeviceMemoryKind::kPool;
    return std::make_unique<CudaTwin>(stream_, bytes, kind, device_);
  }
  void wait() override { stream_.wait(); }
  std::unique_ptr<Series> time(Communicator& control, std::function<void()> call, bool graph,
                               int rounds) override {
    PerfOptions options;
    options.iterations = options_.iterations;
    options.seconds = options_.seconds;
    options.warmup = options_.warmup;
    return std::make_unique<CudaTimes>(control, stream_, call, graph, options, rounds);
  }

 private:
  static Communicator connect(Communicator& control, const MoeOptions& options, int device) {
    zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
    config.device = device;
    config.max_blocks = options.max_blocks;
    if (std::getenv("ZBCCL_TIMEOUT") == nullptr) config.timeout_ms = kTimeoutMs;
    const zbcclUniqueId id = agree_on_id(control);
    return Communicator::from_id(control.size(), control.rank(), id, &config);
  }

  const MoeOptions& options_;
  int device_;
  CudaStream stream_;
  zbcclCall_t call_ = ZBCCL_CALL_INITIALIZER;
  Communicator comm_;
};

}  // namespace

std::unique_ptr<MoeDevice> open_moe_device(Communicator& control, const MoeOptions& options) {
  return std::make_unique<CudaDevice>(control, options);
}

int count_moe_devices() { return count_gpus(PerfArguments()); }

}  // namespace zbccl::tools
