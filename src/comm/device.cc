// Calls on device memory: which calls those are, and their way to the engine.
#include <algorithm>
#include <vector>

#include "base/log.h"
#include "comm/communicator.h"
#include "comm/tuning_file.h"
#include "memory/device_memory.h"

namespace zbccl::comm {

bool Communicator::names_device(const collectives::Launch& launch) const {
  return launch.stream != nullptr && engine_ != nullptr;
}

bool Communicator::on_device(const collectives::Collective& call) const {
  // Where one of them is null or not used on this rank, another tells.
  if (call.norm == nullptr) {
    if (memory::device_of(call.recv) >= 0 || memory::device_of(call.send) >= 0) return true;
  } else {
    const auto buffers = collectives::buffers_of(call);
    const auto there = [](const void* buffer) { return memory::device_of(buffer) >= 0; };
    if (std::any_of(buffers.begin(), buffers.end(), there)) return true;
  }
  // A rank that brings and gets nothing has no buffer that tells, or a null one.
  return names_device(call.launch) && collectives::send_bytes(call, rank(), size()) == 0 &&
         collectives::recv_bytes(call, rank(), size()) == 0;
}

bool Communicator::on_device(const TransferCall& call) const {
  return memory::device_of(call.data) >= 0 || (call.count == 0 && names_device(call.launch));
}

Status Communicator::check_streamless(const collectives::Launch& launch) {
  if (launch.stream == nullptr) return {};
  return error(
      Code::kUnsupported,
      "a stream was given, which orders calls on device memory only: leave it NULL for host "
      "memory, and for a communicator without a device");
}

Status Communicator::check_device() const {
  if (engine_ != nullptr) return {};
  return error(Code::kInvalidUsage,
               "{} serves host memory only: it was made without a device; give one in "
               "zbcclConfig_t.device, or make a CUDA device current before the communicator",
               name_);
}

Status Communicator::run_on_device(const collectives::Collective& call,
                                   std::shared_ptr<Work>* work) {
  ZBCCL_RETURN_IF_ERROR(check_device());
  if (const Status status = engine_->run(call); !status.ok()) {
    account_failure(status);
    return status;
  }
  last_algorithm_.store(engine_->last_algorithm(), std::memory_order_relaxed);
  collectives_.add(1);
  collective_bytes_.add(collectives::payload_bytes(call, rank()));
  return complete_on_device(call.launch, work);
}

Status Communicator::run_on_device(const Task& task, std::shared_ptr<Work>* work) {
  ZBCCL_RETURN_IF_ERROR(check_device());
  // Kernels of a team that has failed do nothing.
  if (const Status status = engine_->take_failure(task.launch.stream); !status.ok()) {
    account_failure(status);
    return status;
  }
  ZBCCL_RETURN_IF_ERROR(execute(task));
  return complete_on_device(task.launch, work);
}

Status Communicator::transfer_on_device(std::span<const TransferCall> calls,
                                        std::span<std::shared_ptr<Work>* const> works) {
  ZBCCL_RETURN_IF_ERROR(check_device());
  std::vector<collectives::DeviceTransfer> transfers;
  transfers.reserve(calls.size());
  uint64_t bytes = 0;
  for (const TransferCall& call : calls) {
    if (call.launch.stream != calls[0].launch.stream) {
      return error(Code::kInvalidUsage,
                   "a group's sends and receives are on two streams; make a group for each");
    }
    if (call.tag != 0) {
      return error(Code::kUnsupported,
                   "messages of device memory have no tags: those between two ranks match in the "
                   "order of their calls");
    }
    transfers.push_back(
        {call.is_send, call.data, call.count * type_size(call.type), call.peer, call.type});
    bytes += transfers.back().bytes;
  }
  if (const Status status = engine_->transfer(transfers, calls[0].launch); !status.ok()) {
    account_failure(status);
    return status;
  }
  transfers_.fetch_add(calls.size(), std::memory_order_relaxed);
  transfer_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  for (std::shared_ptr<Work>* const work : works) {
    ZBCCL_RETURN_IF_ERROR(complete_on_device(calls[0].launch, work));
  }
  return {};
}

Status Communicator::complete_on_device(const collectives::Launch& launch,
                                        std::shared_ptr<Work>* work) {
  if (work == nullptr) return {};
  ZBCCL_ASSIGN_OR_RETURN(collectives::Completion completion, engine_->completion(launch.stream));
  if (*work == nullptr) {
    *work = std::make_shared<Work>(std::move(completion));
  } else {
    (*work)->watch(std::move(completion));
  }
  return {};
}

// For an engine that goes through host memory. What it posts stands in one queue with asynchronous
// calls on host memory, so that all ranks run both in the same order.
collectives::HostPath Communicator::host_path() {
  collectives::HostPath path;
  path.post = [this](std::function<void()> work) {
    if (collective_lane_ == nullptr) collective_lane_ = std::make_unique<CollectiveLane>();
    collective_lane_->post(std::move(work));
  };
  path.run = [this](const collectives::Collective& call) {
    collectives::Context context{*team_, tuning_};
    return collectives::run(context, call);
  };
  path.transfer = [this](std::span<const collectives::DeviceTransfer> transfers) {
    std::vector<std::shared_ptr<transport::Transfer>> items;
    for (const collectives::DeviceTransfer& it : transfers) {
      items.push_back(make_transfer(
          {it.is_send, it.data, it.bytes / type_size(it.type), it.type, it.peer, {}, {}}));
      channels_->post(items.back());
    }
    Status first;
    for (const auto& item : items) {
      Status status = channels_->wait(item);
      if (first.ok()) first = std::move(status);
    }
    return first;
  };
  return path;
}

// All ranks have a GPU, or none has. A GPU that nobody asked for is left alone where some have
// none.
Status Communicator::make_engine(Deadline deadline) {
  int with = -1;
  int without = -1;
  bool asked = false;
  for (int r = 0; r < size(); ++r) {
    const Hello& hello = hellos_[static_cast<size_t>(r)];
    (hello.has_device != 0 ? with : without) = r;
    asked = asked || hello.device_asked != 0;
  }
  if (with < 0) return {};
  if (without >= 0) {
    if (asked) {
      return error(Code::kInvalidUsage,
                   "{}: rank {} has a CUDA device and rank {} has none; give every rank one in "
                   "zbcclConfig_t.device, or none",
                   name_, with, without);
    }
    log::info(log::Subsys::kInit, "{}: rank {} has no CUDA device, so none is used", name_,
              without);
    return {};
  }
  collectives::EngineOptions options;
  options.device = options_.chosen_device();
  options.max_blocks = options_.max_blocks;
  options.deadline = deadline;
  options.host = host_path();
  options.meeting = [this](const void* mine, void* all, size_t bytes, Milliseconds timeout) {
    return exchange(mine, all, bytes, timeout);
  };
  if (rank() == 0) options.tuning = read_tuning();
  const auto gather = [&](const void* mine, void* all, size_t bytes) {
    return exchange(mine, all, bytes, deadline.left());
  };
  ZBCCL_ASSIGN_OR_RETURN(engine_, collectives::make_device_engine(*team_, options, gather));
  return {};
}

}  // namespace zbccl::comm
