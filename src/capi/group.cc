#include "capi/group.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "capi/guard.h"
#include "capi/handles.h"

namespace zbccl::capi {

constinit thread_local int Group::depth_ = 0;

Group& Group::of_this_thread() {
  thread_local Group group;
  return group;
}

Status Group::refuse(Status why) {
  if (!open()) return why;
  Group& group = of_this_thread();
  if (group.refused_.ok()) group.refused_ = why;
  return why;
}

Status Group::add(zbcclComm_t comm, Call call, std::shared_ptr<comm::Work>* work) {
  Status status = check_handle(comm);
  if (status.ok()) {
    status = std::visit([&](const auto& c) { return comm->object->check(c); }, call);
  }
  if (!status.ok()) return refuse(std::move(status));
  Item item;
  item.handle = comm;
  item.communicator = comm->object.get();
  item.generation = comm->generation;
  item.call = std::move(call);
  if (work != nullptr) item.work = *work = std::make_shared<comm::Work>();
  items_.push_back(std::move(item));
  return {};
}

Status Group::end() {
  if (depth_ == 0) {
    return error(Code::kInvalidUsage, "zbcclGroupEnd without a zbcclGroupStart on this thread");
  }
  if (--depth_ > 0) return {};
  auto items = std::exchange(items_, {});
  const auto inits = std::exchange(inits_, {});
  Status refused = std::exchange(refused_, {});
  for (const Item& item : items) {
    const bool alive = item.handle->object != nullptr && item.handle->generation == item.generation;
    if (!refused.ok() || alive) continue;
    refused = error(Code::kInvalidUsage, "a communicator was destroyed before the group's end");
  }
  if (!refused.ok()) {
    const Status status = error(Code::kInvalidUsage,
                                "nothing of this group was started, because one of its calls was "
                                "refused: {}",
                                refused.message());
    complete(items, status);
    return status;
  }
  Status status = run_inits(inits);
  const Status ran = run_items(items);
  return status.ok() ? ran : status;
}

void Group::complete(const std::vector<Item>& items, const Status& status) {
  for (const Item& item : items) {
    if (item.work != nullptr) item.work->complete(status);
  }
}

void Group::cancel() {
  depth_ = 0;
  inits_.clear();
  refused_ = {};
  complete(std::exchange(items_, {}), error(Code::kAborted, "the group of the call was cancelled"));
}

// All at once: each waits for the others.
Status Group::run_inits(const std::vector<std::function<Status()>>& inits) {
  if (inits.size() == 1) return inits.front()();
  std::vector<Status> results(inits.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < inits.size(); ++i) {
    threads.emplace_back([&, i] { results[i] = inits[i](); });
  }
  for (std::thread& thread : threads) thread.join();
  const auto failed = std::find_if(results.begin(), results.end(),
                                   [](const Status& result) { return !result.ok(); });
  return failed != results.end() ? *failed : Status();
}

Status Group::start_item(Item& item, std::shared_ptr<comm::Work>* work) {
  const auto start = [&](auto& call) -> Status {
    using T = std::decay_t<decltype(call)>;
    if constexpr (std::is_same_v<T, comm::TransferCall>) {
      return item.communicator->transfer(call, work);
    } else {
      return item.communicator->run(call, work);
    }
  };
  return std::visit(start, item.call);
}

bool Group::moves_on_device(const Item& item) {
  const auto* const call = std::get_if<comm::TransferCall>(&item.call);
  return call != nullptr && item.communicator->on_device(*call);
}

// Of each communicator all in one: one behind the other on a stream they would wait for each other.
Status Group::transfer_on_device(std::vector<Item*> items) {
  Status first;
  while (!items.empty()) {
    comm::Communicator* const communicator = items.front()->communicator;
    std::vector<comm::TransferCall> calls;
    std::vector<std::shared_ptr<comm::Work>*> works;
    std::vector<Item*> later;
    for (Item* const item : items) {
      if (item->communicator != communicator) {
        later.push_back(item);
        continue;
      }
      calls.push_back(std::get<comm::TransferCall>(item->call));
      if (item->work != nullptr) works.push_back(&item->work);
    }
    Status status = communicator->transfer_on_device(calls, works);
    if (!status.ok()) {
      for (std::shared_ptr<comm::Work>* const work : works) (*work)->complete(status);
      if (first.ok()) first = std::move(status);
    }
    items = std::move(later);
  }
  return first;
}

Status Group::run_items(std::vector<Item>& items) {
  if (items.empty()) return {};
  const bool simple = std::all_of(items.begin(), items.end(), [&](const Item& item) {
    return item.work == nullptr && item.communicator == items.front().communicator &&
           item.call.index() == items.front().call.index();
  });
  // One kind of calls on one communicator, all blocking: this thread makes them itself.
  if (simple && std::holds_alternative<comm::TransferCall>(items.front().call)) {
    std::vector<comm::TransferCall> calls;
    for (const Item& item : items) calls.push_back(std::get<comm::TransferCall>(item.call));
    return items.front().communicator->transfer_all(calls);
  }
  Status first;
  const auto keep = [&](Status status) {
    if (first.ok()) first = std::move(status);
  };
  if (simple) {
    for (Item& item : items) {
      keep(item.communicator->run(std::get<collectives::Collective>(item.call), nullptr));
    }
    return first;
  }
  // On device memory all are enqueued, sends and receives last. The others run on the
  // communicators' own threads, where none waits for another.
  std::vector<std::shared_ptr<comm::Work>> blocking;
  std::vector<Item*> messages;
  for (Item& item : items) {
    if (moves_on_device(item)) {
      messages.push_back(&item);
      continue;
    }
    const auto* const collective = std::get_if<collectives::Collective>(&item.call);
    const bool enqueues = collective != nullptr && item.communicator->on_device(*collective);
    const bool waits = item.work == nullptr;
    Status status = start_item(item, waits && enqueues ? nullptr : &item.work);
    if (status.ok()) {
      if (waits && !enqueues) blocking.push_back(item.work);
      continue;
    }
    if (!waits) item.work->complete(status);
    keep(std::move(status));
  }
  keep(transfer_on_device(std::move(messages)));
  for (const auto& work : blocking) keep(work->wait(Milliseconds(0)));
  return first;
}

}  // namespace zbccl::capi

extern "C" {

zbcclResult_t zbcclGroupStart(void) {
  return zbccl::capi::guard([]() -> zbccl::Status {
    zbccl::capi::Group::start();
    return {};
  });
}

zbcclResult_t zbcclGroupEnd(void) {
  return zbccl::capi::guard([] { return zbccl::capi::Group::of_this_thread().end(); });
}

zbcclResult_t zbcclGroupCancel(void) {
  return zbccl::capi::guard([]() -> zbccl::Status {
    zbccl::capi::Group::of_this_thread().cancel();
    return {};
  });
}

}  // extern "C"
