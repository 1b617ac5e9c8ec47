#include "collectives/cuda/host_engine.h"

#include <chrono>
#include <thread>
#include <utility>

#include "memory/cuda/driver.h"
#include "memory/device_memory.h"
#include "memory/pool.h"
#include "observe/counters.h"

namespace zbccl::cuda {

using collectives::Collective;
using collectives::DeviceTransfer;

namespace {

// The same call on the mirror.
Collective mirrored(const Collective& call, const Mirror& mirror) {
  Collective there = call;
  there.send = mirror.at(call.send);
  there.recv = mirror.at(call.recv);
  there.launch = {};
  if (call.norm == nullptr) return there;
  auto norm = std::make_shared<collectives::NormCall>(*call.norm);
  norm->residual = mirror.at(norm->residual);
  norm->weight = mirror.at(norm->weight);
  kernels::NormOutputs& to = norm->outputs;
  to.residual_out = mirror.at(to.residual_out);
  to.out = mirror.at(to.out);
  to.codes = mirror.at(to.codes);
  to.scales = static_cast<float*>(mirror.at(to.scales));
  to.exponents = static_cast<uint8_t*>(mirror.at(to.exponents));
  there.norm = std::move(norm);
  return there;
}

}  // namespace

Result<std::unique_ptr<HostEngine>> HostEngine::create(transport::Team& team,
                                                       const collectives::EngineOptions& options,
                                                       std::string why) {
  auto engine = std::unique_ptr<HostEngine>(new HostEngine(team, options.device));
  engine->path_ = options.host;
  engine->why_ = std::move(why);
  ZBCCL_RETURN_IF_ERROR(engine->open());
  return engine;
}

Status HostEngine::open() {
  const DeviceGuard guard(device_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  ZBCCL_RETURN_IF_ERROR(order_.open());
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&sent_, cudaEventDisableTiming),
                             "an event for calls");
  return courier_.open();
}

HostEngine::~HostEngine() {
  const DeviceGuard guard(device_);
  order_.close();  // the gates are open by now
  courier_.close();
  if (sent_ != nullptr) (void)cudaEventDestroy(sent_);
  free_staging();
}

void HostEngine::look_for_error() {
  const auto d = driver();
  if (!d.ok()) return;
  const RelaxedCapture relaxed(**d);
  const cudaError_t code = cudaEventQuery(sent_);
  if (code != cudaSuccess && code != cudaErrorNotReady) broken_.store(code);
}

void HostEngine::settle() {
  const DeviceGuard guard(device_);
  while (finished_.load(std::memory_order_acquire) != posted_) {
    look_for_error();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

Status HostEngine::state() {
  look_for_error();
  const std::lock_guard lock(mutex_);
  return failure_;
}

Status HostEngine::take_failure(void* /*stream*/) {
  const std::lock_guard lock(mutex_);
  if (failure_.ok()) return team_.failed() ? team_.failure_status() : Status();
  if (team_.failed()) return failure_;
  if (leaving_out_) ++era_;
  leaving_out_ = false;
  return std::exchange(failure_, {});
}

Status HostEngine::run(const Collective& call) {
  ZBCCL_RETURN_IF_ERROR(take_failure(call.launch.stream));
  ZBCCL_RETURN_IF_ERROR(check_buffers(call, team_.rank(), team_.size(), device_));
  auto job = std::make_shared<Job>();
  job->ranges = ranges_of(call, team_.rank(), team_.size());
  job->body = [this, call](const Mirror& mirror) { return path_.run(mirrored(call, mirror)); };
  return post(job, static_cast<cudaStream_t>(call.launch.stream));
}

Status HostEngine::transfer(std::span<const DeviceTransfer> transfers,
                            const collectives::Launch& how) {
  ZBCCL_RETURN_IF_ERROR(take_failure(how.stream));
  auto job = std::make_shared<Job>();
  job->collective = false;
  for (const DeviceTransfer& it : transfers) {
    if (it.bytes == 0) continue;
    if (memory::device_of(it.data) != device_) {
      return error(Code::kInvalidArgument, "{}: the buffer at {} is not memory of CUDA device {}",
                   it.is_send ? "send" : "recv", it.data, device_);
    }
    job->ranges.all.push_back({it.data, it.bytes});
    (it.is_send ? job->ranges.in : job->ranges.out).push_back({it.data, it.bytes});
  }
  job->body = [this, all = std::vector(transfers.begin(), transfers.end())](const Mirror& mirror) {
    std::vector<DeviceTransfer> there = all;
    for (DeviceTransfer& it : there) it.data = mirror.at(it.data);
    return path_.transfer(there);
  };
  return post(job, static_cast<cudaStream_t>(how.stream));
}

Status HostEngine::post(const std::shared_ptr<Job>& job, cudaStream_t stream) {
  const DeviceGuard guard(device_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  ZBCCL_ASSIGN_OR_RETURN(const bool capturing, is_capturing(stream));
  if (capturing) {
    return error(Code::kUnsupported,
                 "{}: calls on device memory go through host memory, which a CUDA graph cannot "
                 "hold, because {}; make them outside of the capture",
                 team_.name(), why_);
  }
  ZBCCL_RETURN_IF_ERROR(order_.before(stream));
  job->trip = courier_.plan(job->ranges.in, job->ranges.out);
  {
    const std::lock_guard lock(mutex_);
    job->era = era_;
  }
  ++posted_;
  job->sent = courier_.send(job->trip, stream);
  // What was sent of it has to be met, whatever failed.
  path_.post([this, job] { work(*job); });
  ZBCCL_RETURN_IF_ERROR(job->sent);
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaEventRecord(sent_, stream), "recording a call");
  ZBCCL_RETURN_IF_ERROR(order_.after(stream));
  observe::thread_traffic().staged_calls.add(1);
  return {};
}

void HostEngine::work(const Job& job) {
  if (!is_left_out(job)) {
    if (Status status = carry_out(job); !status.ok()) {
      const std::lock_guard lock(mutex_);
      if (failure_.ok()) failure_ = std::move(status);
      leaving_out_ = leaving_out_ || job.collective;
    }
  }
  courier_.end(job.trip);
  finished_.fetch_add(1, std::memory_order_release);
}

bool HostEngine::is_left_out(const Job& job) {
  const std::lock_guard lock(mutex_);
  return leaving_out_ || job.era != era_;
}

// No call of CUDA here: see courier.h.
Status HostEngine::carry_out(const Job& job) {
  if (!job.sent.ok()) return team_.give_up(job.sent);
  Mirror mirror;
  for (const DeviceRange& range : job.ranges.all) mirror.add(range.data, range.bytes);
  if (const size_t bytes = mirror.arrange(); bytes > 0) {
    auto memory = staging(bytes);
    if (!memory.ok()) return team_.give_up(memory.status());
    mirror.place(*memory);
  }
  // For as long as the stream takes, as what is enqueued there itself.
  const auto going = [this] { return check_going(); };
  ZBCCL_RETURN_IF_ERROR(courier_.fetch(job.trip, mirror, going));
  count(job.ranges.in);
  ZBCCL_RETURN_IF_ERROR(job.body(mirror));
  count(job.ranges.out);
  // The others are done with the call by now.
  const auto alive = [this] { return broken_ == cudaSuccess ? Status() : check_going(); };
  return courier_.deliver(job.trip, mirror, alive);
}

// What goes wrong on the GPU is this rank's failure, and the others do not wait for it.
Status HostEngine::check_going() const {
  if (const cudaError_t code = broken_; code != cudaSuccess) {
    return team_.give_up(cuda_error(code, "waiting for a stream"));
  }
  return team_.failed() ? team_.failure_status() : Status();
}

void HostEngine::count(const std::vector<DeviceRange>& ranges) {
  for (const DeviceRange& range : ranges) team_.count_staged(range.bytes);
}

Result<void*> HostEngine::staging(size_t bytes) {
  if (staging_bytes_ >= bytes) return staging_;
  free_staging();
  ZBCCL_ASSIGN_OR_RETURN(staging_, memory::Pool::process().allocate(bytes, memory::Use::kStaging));
  staging_bytes_ = bytes;
  return staging_;
}

void HostEngine::free_staging() {
  if (staging_ == nullptr) return;
  // A team that failed may have a late peer that still reads or writes what it was shown.
  if (team_.failed()) team_.quarantine(staging_);
  (void)memory::Pool::process().free(staging_);
  staging_ = nullptr;
  staging_bytes_ = 0;
}

}  // namespace zbccl::cuda
