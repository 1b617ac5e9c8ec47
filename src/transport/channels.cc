#include "transport/channels.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "memory/pool.h"

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
  bool there = false;
  {
    const std::lock_guard lock(mutex_);
    Lane& lane = lanes_[static_cast<size_t>(transfer->peer)];
    if (transfer->is_send) {
      lane.sends.push_back(transfer);
    } else if (unpack(*transfer, lane)) {
      transfer->done = there = true;
    } else {
      lane.receives.push_back(transfer);
    }
  }
  if (there && transfer->on_done) transfer->on_done(transfer->status);
  progress();
}

bool Channels::progress() {
  Finished finished;
  bool pending = false;
  {
    const std::lock_guard lock(mutex_);
    for (size_t peer = 0; peer < lanes_.size(); ++peer) {
      pending |= advance_sends(lanes_[peer], &finished);
      pending |= advance_receives(static_cast<int>(peer), lanes_[peer], &finished);
    }
    for (const auto& transfer : finished) transfer->done = true;
  }
  for (const auto& transfer : finished) {
    if (transfer->on_done) transfer->on_done(transfer->status);
  }
  return pending;
}

bool Channels::advance_sends(Lane& lane, Finished* finished) {
  while (!lane.sends.empty()) {
    Transfer& transfer = *lane.sends.front();
    if (!step_send(transfer, lane)) {
      const bool gone = !team_.failed() && team_.has_left(transfer.peer);
      // It may have finished its side just before it left.
      if (!(gone && step_send(transfer, lane)) && !overdue(transfer, lane, gone)) return true;
    }
    finished->push_back(std::move(lane.sends.front()));
    lane.sends.pop_front();
  }
  return false;
}

bool Channels::advance_receives(int peer, Lane& lane, Finished* finished) {
  while (take(peer, lane, finished)) {
  }
  if (lane.receives.empty()) return false;
  const bool gone = !team_.failed() && team_.has_left(peer);
  // It may have sent just before it left.
  while (gone && take(peer, lane, finished)) {
  }
  std::erase_if(lane.receives, [&](const std::shared_ptr<Transfer>& transfer) {
    if (!overdue(*transfer, lane, gone)) return false;
    finished->push_back(transfer);
    return true;
  });
  return !lane.receives.empty();
}

bool Channels::overdue(Transfer& transfer, const Lane& lane, bool gone) {
  if (team_.failed()) {
    transfer.status = team_.failure_status();
    return true;
  }
  if (!gone && !transfer.deadline.passed()) return false;
  Failure failure;
  failure.code = gone ? Code::kRemoteFailed : Code::kTimeout;
  failure.culprit = gone ? transfer.peer : team_.cause_of(transfer.peer);
  failure.epoch = team_.sequence();
  team_.fail(failure);
  transfer.status =
      gone
          ? team_.failure_status()
          : error(Code::kTimeout,
                  "rank {} waited {} ms for rank {} to {} {} x {} (message {}{}); {}", team_.rank(),
                  (transfer.timeout.count() > 0 ? transfer.timeout : team_.timeout()).count(),
                  transfer.peer, transfer.is_send ? "receive" : "send", transfer.count,
                  type_name(transfer.type), (transfer.is_send ? lane.sent : lane.received + 1),
                  transfer.tag == 0 ? "" : ", tag " + std::to_string(transfer.tag),
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
    offer.tag = transfer.tag;
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

bool Channels::take(int peer, Lane& lane, Finished* finished) {
  if (lane.receives.empty()) return false;
  const Offer& offer = team_.peer(peer).block->offer(team_.rank());
  if (!reached(offer.epoch.load(std::memory_order_acquire), lane.received + 1)) return false;
  const auto found =
      std::find_if(lane.receives.begin(), lane.receives.end(),
                   [&](const std::shared_ptr<Transfer>& it) { return it->tag == offer.tag; });
  if (found == lane.receives.end()) {
    const Status status = put_aside(peer, lane, offer);
    if (status.ok()) {
      answer(peer, lane, true, offer.count, offer.type);
      return true;
    }
    // The first of them says why; the others find that the team has failed.
    lane.receives.front()->status = team_.give_up(status);
    finished->push_back(std::move(lane.receives.front()));
    lane.receives.pop_front();
    return true;
  }
  const std::shared_ptr<Transfer> transfer = std::move(*found);
  lane.receives.erase(found);
  finished->push_back(transfer);
  const auto type = static_cast<uint32_t>(transfer->type);
  if (offer.count != transfer->count || offer.type != type) {
    transfer->status = differs(peer, offer.count, offer.type, team_.rank(), transfer->count, type);
    answer(peer, lane, false, transfer->count, type);
    return true;
  }
  transfer->status = fetch(peer, offer, transfer->data, transfer->deadline.left());
  if (transfer->status.ok()) {
    answer(peer, lane, true, transfer->count, type);
  } else {
    transfer->status = team_.give_up(transfer->status);
  }
  return true;
}

bool Channels::unpack(Transfer& transfer, Lane& lane) {
  const auto found = std::find_if(lane.parcels.begin(), lane.parcels.end(),
                                  [&](const Parcel& it) { return it.tag == transfer.tag; });
  if (found == lane.parcels.end()) return false;
  const Parcel parcel = std::move(*found);
  lane.parcels.erase(found);
  const auto type = static_cast<uint32_t>(transfer.type);
  if (parcel.count != transfer.count || parcel.type != type) {
    transfer.status =
        differs(transfer.peer, parcel.count, parcel.type, team_.rank(), transfer.count, type);
  } else if (parcel.count != 0) {
    std::memcpy(transfer.data, parcel.bytes.get(), parcel.count * type_size(transfer.type));
  }
  return true;
}

Status Channels::put_aside(int peer, Lane& lane, const Offer& offer) {
  memory::Pool& pool = memory::Pool::process();
  const size_t bytes = offer.count * type_size(static_cast<DataType>(offer.type));
  Parcel parcel{offer.tag, offer.type, offer.count, nullptr};
  if (bytes != 0) {
    ZBCCL_ASSIGN_OR_RETURN(void* const block, pool.allocate(bytes, memory::Use::kStaging));
    parcel.bytes = std::shared_ptr<void>(block, [&pool](void* it) { (void)pool.free(it); });
    ZBCCL_RETURN_IF_ERROR(fetch(peer, offer, block, lane.receives.front()->deadline.left()));
    team_.count_staged(bytes);
  }
  lane.parcels.push_back(std::move(parcel));
  return {};
}

Status Channels::fetch(int peer, const Offer& offer, void* data, Milliseconds limit) {
  const size_t bytes = offer.count * type_size(static_cast<DataType>(offer.type));
  if (bytes == 0) return {};
  RemoteBuffer source;
  ZBCCL_RETURN_IF_ERROR(source.resolve(team_, peer, offer.buffer, limit));
  ZBCCL_RETURN_IF_ERROR(source.read(0, data, bytes));
  return team_.confirm();
}

void Channels::answer(int peer, Lane& lane, bool accepted, uint64_t count, uint32_t type) {
  Answer& answer = team_.own().answer(peer, team_.size());
  answer.accepted = accepted ? 1 : 0;
  answer.count = count;
  answer.type = type;
  answer.epoch.store(++lane.received, std::memory_order_release);
  team_.ring(peer);
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
