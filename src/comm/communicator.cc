#include "comm/communicator.h"

#include <array>
#include <cstring>
#include <thread>
#include <vector>

#include "base/fork_guard.h"
#include "base/log.h"
#include "comm/graveyard.h"
#include "memory/pool.h"
#include "observe/counters.h"

namespace zbccl::comm {

Communicator::~Communicator() {
  if (team_ == nullptr) return;
  if (generation_ != fork_generation()) {
    // A forked child: the threads are not here and the memory is the parent's. Nothing is touched.
    (void)collective_lane_.release();
    (void)transfer_lane_.release();
    (void)channels_.release();
    (void)team_.release();
    new std::shared_ptr<memory::Exchange>(std::move(exchange_));
    return;
  }
  collective_lane_.reset();
  transfer_lane_.reset();
  exchange_->remove_observer(observer_);
  const int me = rank();
  const int nranks = size();
  Grave grave;
  grave.rank = me;
  grave.block = team_->peer(me).block;
  grave.outbox = team_->peer(me).outbox;
  bool apart = false;
  for (int r = 0; r < nranks; ++r) {
    grave.processes.push_back(team_->peer(r).process);
    apart = apart || !team_->peer(r).process->is_self();
  }
  for (int r = 0; r < nranks; ++r) {
    // Release: everything this rank did to its peers' memory is done.
    if (r != me) team_->peer(r).block->left(me, nranks).store(1, std::memory_order_release);
  }
  grave.quarantine = team_->take_quarantine();
  channels_.reset();
  team_.reset();
  bury(std::move(grave));
  // Peers in other processes leave about now, as a rule: a short wait lets the last communicator
  // leave nothing behind.
  const Deadline soon = Deadline::after(Milliseconds(20));
  while (!reap() && apart && !soon.passed()) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

Status Communicator::check_process() const {
  if (generation_ == fork_generation()) [[likely]] {
    return {};
  }
  return error(Code::kInvalidUsage,
               "{} was made before fork(); make a communicator of its own in the child", name_);
}

void Communicator::account(const Status& status, uint64_t bytes) {
  if (status.ok()) {
    operations_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
  } else {
    failures_.fetch_add(1, std::memory_order_relaxed);
    log::info(log::Subsys::kColl, "{} rank {}: {}", name_, rank(), status.to_string());
  }
}

Status Communicator::execute(const collectives::Collective& call) {
  const std::lock_guard lock(run_mutex_);
  collectives::Context context{*team_, tuning_};
  const Status status = collectives::run(context, call);
  if (status.ok()) {
    last_algorithm_.store(context.algorithm, std::memory_order_relaxed);
    observe::Traffic& traffic = observe::process_traffic();
    (context.staged ? traffic.staged_calls : traffic.direct_calls)
        .fetch_add(1, std::memory_order_relaxed);
  }
  account(status, call.count * type_size(call.type));
  return status;
}

Status Communicator::run(const collectives::Collective& call, std::shared_ptr<Work>* work) {
  ZBCCL_RETURN_IF_ERROR(check_process());
  ZBCCL_RETURN_IF_ERROR(collectives::check(call, rank(), size()));
  const bool queued = collective_lane_ != nullptr && !collective_lane_->idle();
  if (work == nullptr && !queued) return execute(call);
  // A blocking call waits its turn behind the asynchronous ones.
  if (collective_lane_ == nullptr) collective_lane_ = std::make_unique<CollectiveLane>();
  auto handle = std::make_shared<Work>();
  auto leases = std::make_shared<std::array<memory::Lease, 2>>();
  (*leases)[0] = memory::Lease(call.send);
  (*leases)[1] = memory::Lease(call.recv);
  collective_lane_->post([this, call, handle, leases]() mutable {
    const Status status = execute(call);
    leases.reset();
    handle->complete(status);
  });
  leases.reset();
  if (work == nullptr) return handle->wait(Milliseconds(0));
  *work = std::move(handle);
  return {};
}

Status Communicator::transfer(bool is_send, void* data, size_t count, DataType type, int peer,
                              Milliseconds timeout, std::shared_ptr<Work>* work) {
  const char* name = is_send ? "send" : "recv";
  ZBCCL_RETURN_IF_ERROR(check_process());
  collectives::Collective call;
  call.operation = is_send ? Operation::kSend : Operation::kRecv;
  call.send = data;
  call.recv = data;
  call.count = count;
  call.type = type;
  ZBCCL_RETURN_IF_ERROR(collectives::check(call, rank(), size()));
  if (peer < 0 || peer >= size()) {
    return error(Code::kInvalidArgument, "{}: peer {} is not a rank; there are {}", name, peer,
                 size());
  }
  if (peer == rank() && work == nullptr && is_send) {
    return error(Code::kInvalidUsage,
                 "a blocking send to the own rank never ends; make one side asynchronous");
  }
  const uint64_t bytes = count * type_size(type);
  auto item = std::make_shared<transport::Transfer>();
  item->is_send = is_send;
  item->data = data;
  item->count = count;
  item->type = type;
  item->peer = peer;
  item->timeout = timeout;
  if (work == nullptr) {
    channels_->post(item);
    const Status status = channels_->wait(item);
    account(status, bytes);
    return status;
  }
  if (transfer_lane_ == nullptr) {
    transfer_lane_ = std::make_unique<TransferLane>(*team_, *channels_);
  }
  auto handle = std::make_shared<Work>();
  auto lease = std::make_shared<memory::Lease>(data);
  item->on_done = [this, handle, lease, bytes](const Status& status) mutable {
    lease.reset();
    account(status, bytes);
    handle->complete(status);
  };
  lease.reset();
  transfer_lane_->post(item);
  *work = std::move(handle);
  return {};
}

Status Communicator::send(const void* data, size_t count, DataType type, int peer,
                          Milliseconds timeout, std::shared_ptr<Work>* work) {
  return transfer(true, const_cast<void*>(data), count, type, peer, timeout, work);
}

Status Communicator::recv(void* data, size_t count, DataType type, int peer, Milliseconds timeout,
                          std::shared_ptr<Work>* work) {
  return transfer(false, data, count, type, peer, timeout, work);
}

void Communicator::abort() {
  if (generation_ != fork_generation()) return;
  transport::Failure failure;
  failure.code = Code::kAborted;
  failure.culprit = rank();
  failure.epoch = team_->sequence();
  team_->fail(failure);
}

Status Communicator::state() const { return team_->failed() ? team_->failure_status() : Status(); }

Stats Communicator::stats() const {
  Stats stats;
  stats.operations = operations_.load(std::memory_order_relaxed);
  stats.failures = failures_.load(std::memory_order_relaxed);
  stats.bytes = bytes_.load(std::memory_order_relaxed);
  stats.staged_bytes = team_->traffic().staged.load(std::memory_order_relaxed);
  stats.landing_bytes = team_->traffic().landing.load(std::memory_order_relaxed);
  stats.metadata_bytes = metadata_bytes_;
  stats.wait_ns = team_->wait_nanoseconds();
  return stats;
}

Status Communicator::exchange(const void* mine, void* all, size_t bytes, Milliseconds timeout) {
  // Through the pool, so that nothing has to be attached to or staged.
  memory::Pool& pool = memory::Pool::process();
  const auto nranks = static_cast<size_t>(size());
  ZBCCL_ASSIGN_OR_RETURN(void* const block,
                         pool.allocate(bytes * (nranks + 1), memory::Use::kMetadata));
  auto* gathered = static_cast<std::byte*>(block);
  std::byte* own = gathered + bytes * nranks;
  std::memcpy(own, mine, bytes);
  collectives::Collective call;
  call.operation = Operation::kAllGather;
  call.send = own;
  call.recv = gathered;
  call.count = bytes;
  call.type = DataType::kU8;
  call.timeout = timeout;
  if (collective_lane_ != nullptr) collective_lane_->drain();
  const std::lock_guard lock(run_mutex_);
  collectives::Context context{*team_, tuning_};
  const Status status = collectives::run(context, call);
  if (status.ok()) std::memcpy(all, gathered, bytes * nranks);
  // After a failure a late peer may still read the block: it is small, and it stays.
  if (!team_->failed()) (void)pool.free(block);
  return status;
}

}  // namespace zbccl::comm
