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
    (void)engine_.release();
    new std::shared_ptr<memory::Exchange>(std::move(exchange_));
    return;
  }
  if (engine_ != nullptr) engine_->settle();
  collective_lane_.reset();
  transfer_lane_.reset();
  exchange_->remove_observer(observer_);
  std::function<void()> free_device;
  if (engine_ != nullptr) free_device = engine_->take_arena();
  engine_.reset();
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
  grave.free_device = std::move(free_device);
  channels_.reset();
  team_.reset();
  bury(std::move(grave));
  // Peers in other processes leave about now, as a rule: a short wait lets the last communicator
  // leave nothing behind.
  const Deadline soon = Deadline::after(Milliseconds(20));
  while (!reap() && apart && !soon.passed()) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  if (apart) reap_later();
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
    transfers_.fetch_add(1, std::memory_order_relaxed);
    transfer_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  } else {
    account_failure(status);
  }
}

void Communicator::account_failure(const Status& status) {
  failures_.fetch_add(1, std::memory_order_relaxed);
  log::info(log::Subsys::kColl, "{} rank {}: {}", name_, rank(), status.to_string());
}

template <typename Body>
Status Communicator::operate(const collectives::Launch& launch, Body&& body) {
  if (running_.load(std::memory_order_relaxed)) {
    return error(
        Code::kInvalidUsage,
        "two threads call operations of {} at once; a communicator is used by one thread at "
        "a time",
        name_);
  }
  running_.store(true, std::memory_order_relaxed);
  collectives::Context context{*team_, tuning_, engine_.get(), launch};
  Status status = body(context);
  running_.store(false, std::memory_order_relaxed);
  if (!status.ok()) [[unlikely]] {
    account_failure(status);
    return status;
  }
  last_algorithm_.store(plan::algorithm_name(context.algorithm), std::memory_order_relaxed);
  observe::Traffic& traffic = observe::thread_traffic();
  (context.staged ? traffic.staged_calls : traffic.direct_calls).add(1);
  collectives_.add(1);
  collective_bytes_.add(context.payload);
  return status;
}

Status Communicator::execute(const collectives::Collective& call) {
  return operate(call.launch, [&](collectives::Context& context) {
    context.payload = collectives::payload_bytes(call, rank());
    return collectives::run(context, call);
  });
}

Status Communicator::execute(const Task& task) { return operate(task.launch, task.body); }

Status Communicator::check(const collectives::Collective& call) const {
  ZBCCL_RETURN_IF_ERROR(check_process());
  return collectives::check(call, rank(), size());
}

Status Communicator::check(const TransferCall& call) const {
  collectives::Collective same;
  same.operation = call.is_send ? Operation::kSend : Operation::kRecv;
  same.send = call.data;
  same.recv = call.data;
  same.count = call.count;
  same.type = call.type;
  ZBCCL_RETURN_IF_ERROR(check(same));
  if (call.peer >= 0 && call.peer < size()) return {};
  return error(Code::kInvalidArgument, "{}: peer {} is not a rank; there are {}",
               operation_name(same.operation), call.peer, size());
}

Status Communicator::run(const collectives::Collective& call, std::shared_ptr<Work>* work) {
  ZBCCL_RETURN_IF_ERROR(check(call));
  if (on_device(call)) return run_on_device(call, work);
  ZBCCL_RETURN_IF_ERROR(check_streamless(call.launch));
  if (work == nullptr && !queued()) return execute(call);
  const auto memory = collectives::buffers_of(call);
  return post([this, call] { return execute(call); }, memory, work);
}

Status Communicator::run(Task task, std::shared_ptr<Work>* work) {
  ZBCCL_RETURN_IF_ERROR(check_process());
  if (task.on_device) return run_on_device(task, work);
  ZBCCL_RETURN_IF_ERROR(check_streamless(task.launch));
  if (work == nullptr && !queued()) return execute(task);
  const std::vector<const void*> memory = task.memory;
  return post([this, what = std::move(task)] { return execute(what); }, memory, work);
}

// A blocking call waits its turn behind the asynchronous ones.
Status Communicator::post(std::function<Status()> execute_it, std::span<const void* const> memory,
                          std::shared_ptr<Work>* work) {
  if (collective_lane_ == nullptr) collective_lane_ = std::make_unique<CollectiveLane>();
  std::shared_ptr<Work> own;
  if (work == nullptr) work = &own;
  if (*work == nullptr) *work = std::make_shared<Work>();
  auto leases = std::make_shared<std::vector<memory::Lease>>();
  for (const void* address : memory) {
    if (address != nullptr) leases->emplace_back(address);
  }
  collective_lane_->post([call = std::move(execute_it), handle = *work, leases]() mutable {
    const Status status = call();
    call = nullptr;  // what it holds is let go before the call counts as complete
    leases.reset();
    handle->complete(status);
  });
  leases.reset();
  return own != nullptr ? own->wait(Milliseconds(0)) : Status();
}

std::shared_ptr<transport::Transfer> Communicator::make_transfer(const TransferCall& call) const {
  auto item = std::make_shared<transport::Transfer>();
  item->is_send = call.is_send;
  item->data = call.data;
  item->count = call.count;
  item->type = call.type;
  item->peer = call.peer;
  item->timeout = call.timeout;
  item->tag = static_cast<uint32_t>(call.tag);
  return item;
}

Status Communicator::transfer(const TransferCall& call, std::shared_ptr<Work>* work) {
  ZBCCL_RETURN_IF_ERROR(check(call));
  if (on_device(call)) return transfer_on_device({&call, 1}, {&work, work == nullptr ? 0U : 1U});
  ZBCCL_RETURN_IF_ERROR(check_streamless(call.launch));
  const uint64_t bytes = call.count * type_size(call.type);
  auto item = make_transfer(call);
  if (work == nullptr) {
    if (call.peer == rank() && call.is_send) {
      return error(Code::kInvalidUsage,
                   "a blocking send to the own rank never ends; make one side asynchronous, or put "
                   "both in a group");
    }
    channels_->post(item);
    const Status status = channels_->wait(item);
    account(status, bytes);
    return status;
  }
  if (transfer_lane_ == nullptr) {
    transfer_lane_ = std::make_unique<TransferLane>(*team_, *channels_);
  }
  if (*work == nullptr) *work = std::make_shared<Work>();
  auto lease = std::make_shared<memory::Lease>(call.data);
  item->on_done = [this, handle = *work, lease, bytes](const Status& status) mutable {
    lease.reset();
    account(status, bytes);
    handle->complete(status);
  };
  lease.reset();
  transfer_lane_->post(item);
  return {};
}

Status Communicator::transfer_all(const std::vector<TransferCall>& calls) {
  size_t here = 0;
  for (const TransferCall& call : calls) {
    ZBCCL_RETURN_IF_ERROR(check(call));
    here += on_device(call) ? 1 : 0;
  }
  if (here == calls.size() && here > 0) return transfer_on_device(calls, {});
  if (here > 0) {
    return error(Code::kInvalidUsage,
                 "a group's sends and receives are of host memory and of device memory; make a "
                 "group of each");
  }
  for (const TransferCall& call : calls) ZBCCL_RETURN_IF_ERROR(check_streamless(call.launch));
  std::vector<std::shared_ptr<transport::Transfer>> items;
  items.reserve(calls.size());
  for (const TransferCall& call : calls) {
    items.push_back(make_transfer(call));
    channels_->post(items.back());
  }
  Status first;
  for (size_t i = 0; i < items.size(); ++i) {
    Status status = channels_->wait(items[i]);
    account(status, calls[i].count * type_size(calls[i].type));
    if (first.ok()) first = std::move(status);
  }
  return first;
}

void Communicator::abort() {
  if (generation_ != fork_generation()) return;
  transport::Failure failure;
  failure.code = Code::kAborted;
  failure.culprit = rank();
  failure.epoch = team_->sequence();
  team_->fail(failure);
  if (engine_ != nullptr) engine_->abort();
}

Status Communicator::state() const {
  if (engine_ != nullptr) ZBCCL_RETURN_IF_ERROR(engine_->state());
  return team_->failed() ? team_->failure_status() : Status();
}

Stats Communicator::stats() const {
  Stats stats;
  stats.operations = collectives_.get() + transfers_.load(std::memory_order_relaxed);
  stats.failures = failures_.load(std::memory_order_relaxed);
  stats.bytes = collective_bytes_.get() + transfer_bytes_.load(std::memory_order_relaxed);
  stats.staged_bytes = team_->staged_bytes();
  stats.landing_bytes = team_->landing_bytes();
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
  collectives::Context context{*team_, tuning_};
  const Status status = collectives::run(context, call);
  if (status.ok()) std::memcpy(all, gathered, bytes * nranks);
  if (team_->failed()) team_->quarantine(block);
  (void)pool.free(block);
  return status;
}

}  // namespace zbccl::comm
