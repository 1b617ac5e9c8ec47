#include "transport/channels.h"

#include <sched.h>

#include <algorithm>

namespace zbccl::transport {
namespace {

Status differs(int sender, uint64_t sent, uint32_t sent_type, int receiver, uint64_t asked,
               uint32_t asked_type) {
  return error(Code::kInvalidUsage, "rank {} sent {} x {}, rank {} asked for {} x {}", sender, sent,
               type_name(static_cast<DataType>(sent_type % kNumDataTypes)), receiver, asked,
               type_name(static_cast<DataType>(asked_type % kNumDataTypes)));
}

}  // namespace

Channels::Channels(Team& team) : team_(team), lanes_(static_cast<size_t>(team.size())) {}

void Channels::post(const std::shared_ptr<Transfer>& transfer) {
  transfer->deadline =
      Deadline::after(transfer->timeout.count() > 0 ? transfer->timeout : team_.timeout());
  {
    const std::lock_guard lock(mutex_);
    Lane& lane = lanes_[static_cast<size_t>(transfer->peer)];
    (transfer->is_send ? lane.sends : lane.receives).push_back(transfer);
  }
  progress();
}

bool Channels::progress() {
  std::vector<std::shared_ptr<Transfer>> finished;
  bool pending = false;
  {
    const std::lock_guard lock(mutex_);
    for (Lane& lane : lanes_) {
      pending |= advance(lane.sends, lane, &finished);
      pending |= advance(lane.receives, lane, &finished);
    }
    for (const auto& transfer : finished) transfer->done = true;
  }
  for (const auto& transfer : finished) {
    if (transfer->on_done) transfer->on_done(transfer->status);
  }
  return pending;
}

bool Channels::advance(Queue& queue, Lane& lane, std::vector<std::shared_ptr<Transfer>>* finished) {
  while (!queue.empty() && step(*queue.front(), lane)) {
    finished->push_back(std::move(queue.front()));
    queue.pop_front();
  }
  return !queue.empty();
}

bool Channels::step(Transfer& transfer, Lane& lane) {
  if (transfer.is_send ? step_send(transfer, lane) : step_receive(transfer, lane)) return true;
  if (team_.failed()) {
    transfer.status = team_.failure_status();
    return true;
  }
  const bool gone = team_.has_left(transfer.peer);
  if (!gone && !transfer.deadline.passed()) return false;
  if (gone) {
    // It may have finished its side just before it left.
    if (transfer.is_send ? step_send(transfer, lane) : step_receive(transfer, lane)) return true;
  }
  Failure failure;
  failure.code = gone ? Code::kRemoteFailed : Code::kTimeout;
  failure.culprit = gone ? transfer.peer : team_.cause_of(transfer.peer);
  failure.epoch = team_.sequence();
  team_.fail(failure);
  transfer.status =
      gone ? team_.failure_status()
           : error(Code::kTimeout,
                   "rank {} waited {} ms for rank {} to {} {} x {} (message {}); {}", team_.rank(),
                   (transfer.timeout.count() > 0 ? transfer.timeout : team_.timeout()).count(),
                   transfer.peer, transfer.is_send ? "receive" : "send", transfer.count,
                   type_name(transfer.type), (transfer.is_send ? lane.sent : lane.received + 1),
                   team_.whereabouts(transfer.peer));
  return true;
}

bool Channels::step_send(Transfer& transfer, Lane& lane) {
  ControlBlock& mine = team_.own();
  if (!transfer.offered) {
    if (team_.failed()) return false;
    const size_t bytes = transfer.count * type_size(transfer.type);
    if (const Status opened = transfer.buffer.open_input(team_, transfer.data, bytes);
        !opened.ok()) {
      transfer.status = team_.give_up(opened);
      return true;
    }
    transfer.epoch = ++lane.sent;
    transfer.offered = true;
    Offer& offer = mine.offer(transfer.peer);
    offer.type = static_cast<uint32_t>(transfer.type);
    offer.count = transfer.count;
    offer.buffer = transfer.buffer.ref();
    offer.epoch.store(transfer.epoch, std::memory_order_release);
    team_.ring(transfer.peer);
  }
  const Answer& answer = team_.peer(transfer.peer).block->answer(team_.rank(), team_.size());
  if (!reached(answer.epoch.load(std::memory_order_acquire), transfer.epoch)) return false;
  if (answer.accepted == 0) {
    transfer.status = differs(team_.rank(), transfer.count, static_cast<uint32_t>(transfer.type),
                              transfer.peer, answer.count, answer.type);
  }
  transfer.buffer = LocalBuffer();
  return true;
}

bool Channels::step_receive(Transfer& transfer, Lane& lane) {
  const Offer& offer = team_.peer(transfer.peer).block->offer(team_.rank());
  const uint32_t next = lane.received + 1;
  if (!reached(offer.epoch.load(std::memory_order_acquire), next)) return false;
  const bool fits =
      offer.count == transfer.count && offer.type == static_cast<uint32_t>(transfer.type);
  transfer.status = fits ? receive(transfer, offer)
                         : differs(transfer.peer, offer.count, offer.type, team_.rank(),
                                   transfer.count, static_cast<uint32_t>(transfer.type));
  if (fits && !transfer.status.ok()) {
    transfer.status = team_.give_up(transfer.status);
    return true;
  }
  Answer& answer = team_.own().answer(transfer.peer, team_.size());
  answer.accepted = fits ? 1 : 0;
  answer.count = transfer.count;
  answer.type = static_cast<uint32_t>(transfer.type);
  lane.received = next;
  answer.epoch.store(next, std::memory_order_release);
  team_.ring(transfer.peer);
  return true;
}

Status Channels::receive(Transfer& transfer, const Offer& offer) {
  const size_t bytes = transfer.count * type_size(transfer.type);
  if (bytes == 0) return {};
  RemoteBuffer source;
  ZBCCL_RETURN_IF_ERROR(
      source.resolve(team_, transfer.peer, offer.buffer, transfer.deadline.left()));
  ZBCCL_RETURN_IF_ERROR(source.read(0, transfer.data, bytes));
  return team_.confirm();
}

Status Channels::wait(const std::shared_ptr<Transfer>& transfer) {
  // As in Team::wait_slow: a peer on its way is yielded for, a late one is slept for.
  constexpr int kSpins = 20;
  constexpr auto kYieldFor = std::chrono::microseconds(500);
  Clock::time_point start;
  bool blocked = false;
  for (int spins = 0;; ++spins) {
    const uint32_t seen = team_.doorbell_rings();
    progress();
    {
      const std::lock_guard lock(mutex_);
      if (transfer->done) {
        if (blocked && transfer->status.ok()) team_.set_blocked_on(-1);
        return transfer->status;
      }
    }
    if (spins == 0) start = Clock::now();
    if (team_.spins() && spins < kSpins) {
      spin_pause();
    } else if (Clock::now() - start < kYieldFor) {
      sched_yield();
    } else {
      blocked = true;
      team_.set_blocked_on(transfer->peer);
      team_.sleep_on_doorbell(seen, std::min(transfer->deadline.left(), Milliseconds(50)));
    }
  }
}

}  // namespace zbccl::transport
