#include "transport/team.h"

#include <sched.h>

#include <algorithm>
#include <thread>

#include "base/futex.h"
#include "base/log.h"
#include "base/types.h"

namespace zbccl::transport {
namespace {

// Spins without the clock, and without a pause, whose 50 ns and more would show in the smallest
// operations: about a microsecond, which covers peers that are on their way.
constexpr int kTightSpins = 1000;
// Where ranks share cores, handing the core on lets the others get there: a microsecond for each of
// them, against some tens for a sleep and its end. A rank that is really late is slept for.
constexpr auto kYieldFor = std::chrono::microseconds(500);
constexpr auto kSleepSlice = Milliseconds(50);  // between looks at who has left
constexpr auto kLongWait = Milliseconds(10);    // then the others are told whom this rank waits for

// What a call meets whose peer is being killed: its memory is gone, or its connection.
bool may_be_death(Code code) { return code == Code::kRemoteFailed || code == Code::kNetwork; }

// The rest of an all_reduce_rms_norm's text.
std::string describe_norm(const Signature& s) {
  constexpr const char* kForms[] = {"", ", codes with one scale", ", codes with group scales",
                                    ", codes with powers of two"};
  std::string text = format(", rows of {}{}", s.root, kForms[s.red_op & kNormForm]);
  if ((s.red_op & kNormOnePlusWeight) != 0) text += ", 1 + weight";
  if ((s.red_op & kNormResidual) == 0) text += ", no residual";
  constexpr std::pair<NormFlag, const char*> kOutputs[] = {{kNormResidualOut, "residual_out"},
                                                           {kNormOut, "out"},
                                                           {kNormScales, "scales"},
                                                           {kNormExponents, "scales_ue8m0"}};
  text += ", gives";
  for (const auto& [flag, name] : kOutputs) {
    if ((s.red_op & flag) != 0) text += format(" {}", name);
  }
  return text + ")";
}

std::string describe(const Signature& s) {
  const auto operation = static_cast<Operation>(s.operation);
  std::string text = operation_name(operation);
  if (operation == Operation::kInit || operation == Operation::kBarrier) return text;
  if (is_moe(operation)) return s.root == 0 ? text : text + format("(object {})", s.root);
  text += format("({} x {}", s.count, type_name(static_cast<DataType>(s.type % kNumDataTypes)));
  if (operation == Operation::kAllReduceRmsNorm) return text + describe_norm(s);
  if (operation == Operation::kAllReduceQuantized) {
    text += format(" as {}", type_name(static_cast<DataType>(s.root % kNumDataTypes)));
  }
  if (reduces(operation)) {
    text += format(", {}", op_name(static_cast<RedOp>(s.red_op % kNumRedOps)));
  }
  if (has_root(operation)) text += format(", root {}", s.root);
  if (operation == Operation::kAllToAll && s.root != 0) text += ", in place";
  return text + ")";
}

}  // namespace

void back_off(Clock::duration waited) {
  if (waited < std::chrono::milliseconds(2)) {
    // The scheduler may have put a peer on this very core, where spinning would only keep it out.
    sched_yield();
  } else {
    std::this_thread::sleep_for(waited < std::chrono::seconds(1) ? std::chrono::microseconds(50)
                                                                 : std::chrono::microseconds(500));
  }
}

Team::Team(TeamOptions options, std::vector<Peer> peers)
    : options_(std::move(options)),
      peers_(std::move(peers)),
      epoch_(options_.epoch_base),
      phase_(options_.epoch_base) {
  own_outbox_ = peers_[static_cast<size_t>(options_.rank)].outbox;
}

Status Team::enter(const Signature& signature, const BufferRef& input, const BufferRef& output,
                   Milliseconds timeout, uint64_t tally) {
  if (failed()) return failure_status();
  call_timeout_ = timeout.count() > 0 ? timeout : options_.timeout;
  const uint32_t entered = epoch() + 1;
  epoch_.store(entered, std::memory_order_relaxed);
  Packet& packet = own().packets[entered & 1U];
  packet.signature = signature;
  packet.input = input;
  packet.output = output;
  const bool tallied = signature.operation == static_cast<uint8_t>(Operation::kAllToAllV);
  if (tallied) packet.tally = tally;
  packet.epoch.store(entered, std::memory_order_release);
  arrive();
  ZBCCL_RETURN_IF_ERROR(wait_all(Event::kEnter, call_timeout_));
  // Late: the others have given up, and their memory may serve something else by now.
  if (failed()) return failure_status();
  ZBCCL_RETURN_IF_ERROR(compare(signature));
  return tallied ? tally_error() : Status();
}

Status Team::compare(const Signature& mine) const {
  bool equal = true;
  for (int r = 0; r < size(); ++r) equal = equal && packet(r).signature == mine;
  if (equal) [[likely]] {
    return {};
  }
  return disagreement();
}

// Every rank sees the same packets, so every rank writes the same text: each distinct call with the
// ranks that made it.
Status Team::disagreement() const {
  std::string text = format("operation {} of {} differs between ranks:", sequence(), options_.name);
  std::vector<bool> told(peers_.size(), false);
  for (int r = 0; r < size(); ++r) {
    if (told[static_cast<size_t>(r)]) continue;
    std::string ranks;
    for (int other = r; other < size(); ++other) {
      if (!(packet(other).signature == packet(r).signature)) continue;
      told[static_cast<size_t>(other)] = true;
      ranks += format("{}{}", ranks.empty() ? "" : ", ", other);
    }
    text += format("{} rank {} called {}", r == 0 ? "" : ";", ranks, describe_call(r));
  }
  return error(Code::kInvalidUsage, "{}. Call the same operations in the same order on every rank",
               text);
}

std::string Team::describe_call(int rank) const {
  constexpr int kMostSizes = 16;
  const Signature& signature = packet(rank).signature;
  std::string text = describe(signature);
  const auto operation = static_cast<Operation>(signature.operation);
  if (operation == Operation::kAllReduceRmsNorm) {
    const Annex& more = annex(rank);
    return text + format(" with epsilon {}, scale {}, strides {} and {}", more.epsilon, more.scale,
                         more.strides[0], more.strides[1]);
  }
  if (!has_blocks(operation) || operation == Operation::kAllToAllV) return text;
  text += " with sizes ";
  for (int peer = 0; peer < std::min(size(), kMostSizes); ++peer) {
    text += format("{}{}", peer == 0 ? "" : " ", row(rank, peer).recv_count);
  }
  return text + (size() > kMostSizes ? " ..." : "");
}

Status Team::tally_error() const {
  uint64_t sum = 0;
  for (int r = 0; r < size(); ++r) sum += packet(r).tally;
  if (sum == 0) [[likely]] {
    return {};
  }
  constexpr int kMostPairs = 4;
  std::string text;
  int pairs = 0;
  for (int from = 0; from < size(); ++from) {
    for (int to = 0; to < size(); ++to) {
      const uint64_t sent = row(from, to).send_count;
      const uint64_t expected = row(to, from).recv_count;
      if (sent == expected || ++pairs > kMostPairs) continue;
      text += format("{} rank {} sends {} to rank {}, which expects {}", text.empty() ? "" : ";",
                     from, sent, to, expected);
    }
  }
  if (pairs > kMostPairs) text += format("; and {} more pairs", pairs - kMostPairs);
  return error(Code::kInvalidUsage, "operation {} of {}, {}:{}. Give both sides the same count",
               sequence(), options_.name, describe(packet(rank()).signature), text);
}

void Team::signal() {
  ++phase_;
  own().phase.phase.store(phase_, std::memory_order_release);
  arrive();
}

Status Team::wait() {
  ZBCCL_RETURN_IF_ERROR(wait_all(Event::kPhase, call_timeout_));
  return confirm();
}

void Team::arrive() {
  if (options_.spin) return;
  Bell& bell = peers_[0].block->bell;
  std::atomic<uint32_t>& arrivals = bell.arrivals[signals_++ & 3U];
  if (arrivals.fetch_add(1) + 1 != static_cast<uint32_t>(size())) return;
  // The last one to come wakes all at once; every flag was stored before its owner arrived.
  arrivals.store(0);
  bell.rings.fetch_add(1);
  if (bell.sleepers.load() > 0) futex_wake_all(bell.rings);
}

bool Team::arrived(Event event, int rank) const {
  const ControlBlock& block = *peers_[static_cast<size_t>(rank)].block;
  return event == Event::kEnter
             ? reached(block.packets[epoch() & 1U].epoch.load(std::memory_order_acquire), epoch())
             : reached(block.phase.phase.load(std::memory_order_acquire), phase_);
}

int Team::first_missing(Event event) const {
  for (int r = 0; r < size(); ++r) {
    if (!arrived(event, r)) return r;
  }
  return -1;
}

Status Team::wait_all(Event event, Milliseconds timeout) {
  if (!options_.spin) return first_missing(event) < 0 ? Status() : wait_slow(event, timeout);
  // The line that this rank writes next was last read by its peers. Fetching it back while there is
  // nothing else to do takes that half of the round trip out of the next meeting.
  prefetch_for_write(event == Event::kEnter ? static_cast<const void*>(&own().phase)
                                            : &own().packets[(epoch() + 1) & 1U]);
  int spins = 0;
  for (int r = 0; r < size(); ++r) {
    while (!arrived(event, r)) {
      if (++spins > kTightSpins) return wait_slow(event, timeout);
    }
  }
  return {};
}

Status Team::wait_slow(Event event, Milliseconds timeout) {
  const auto start = Clock::now();
  const Deadline deadline = Deadline::after(timeout);
  Bell& bell = peers_[0].block->bell;
  auto next_look = start + kSleepSlice;
  for (;;) {
    const uint32_t seen = bell.rings.load();
    const int missing = first_missing(event);
    const auto now = Clock::now();
    if (missing < 0) {
      wait_ns_.fetch_add(static_cast<uint64_t>((now - start).count()), std::memory_order_relaxed);
      if (now - start > kLongWait) set_blocked_on(-1);
      return {};
    }
    if (failed()) return failure_status();
    if (now - start > kLongWait) set_blocked_on(missing);
    if (now >= next_look) {
      next_look = now + kSleepSlice;
      // It may have left after it arrived: look for its arrival once more before blaming it.
      if (has_left(missing) && !arrived(event, missing)) {
        Failure failure;
        failure.code = Code::kRemoteFailed;
        failure.culprit = missing;
        failure.epoch = sequence();
        fail(failure);
        return failure_status();
      }
    }
    if (now >= deadline.at()) return time_out(event, timeout);
    if (options_.spin) {
      back_off(now - start);
    } else if (now - start < kYieldFor) {
      sched_yield();
    } else {
      bell.sleepers.fetch_add(1);
      if (!arrived(event, missing) && !failed()) {
        futex_wait(bell.rings, seen, std::min(deadline.left(), kSleepSlice));
      }
      bell.sleepers.fetch_sub(1);
    }
  }
}

Status Team::time_out(Event event, Milliseconds timeout) {
  // Who is where, for every rank that is not here.
  std::string table;
  int culprit = -1;
  for (int r = 0; r < size(); ++r) {
    if (arrived(event, r)) continue;
    // Before it is described: it may give up its own wait meanwhile, and with it the hint.
    const int cause = cause_of(r);
    table += format("{} {}", table.empty() ? "" : ";", whereabouts(r));
    if (culprit < 0 || (peer(r).process->stopped() && !peer(culprit).process->stopped())) {
      culprit = cause;
    }
  }
  if (arrived(event, culprit)) table += format("; {}", whereabouts(culprit));
  Failure failure;
  failure.code = Code::kTimeout;
  failure.culprit = culprit;
  failure.epoch = sequence();
  const Signature mine = packet(rank()).signature;
  fail(failure);
  return error(Code::kTimeout, "rank {} waited {} ms in operation {} of {}, {}{};{}", rank(),
               timeout.count(), sequence(), options_.name, describe(mine),
               event == Event::kEnter ? "" : ", for the others to finish it", table);
}

std::string Team::whereabouts(int rank) const {
  const ControlBlock& block = *peers_[static_cast<size_t>(rank)].block;
  const uint32_t a = block.packets[0].epoch.load(std::memory_order_acquire);
  const uint32_t b = block.packets[1].epoch.load(std::memory_order_acquire);
  const uint32_t last = reached(a, b) ? a : b;
  if (last == options_.epoch_base) return format("rank {} has entered no operation yet", rank);
  // Not overwritten meanwhile: that rank gets no further than one operation ahead of this one.
  const Signature theirs = block.packets[last & 1U].signature;
  std::string text = format("rank {} last entered operation {}, {}", rank,
                            last - options_.epoch_base, describe(theirs));
  if (blocked_on(rank) >= 0) text += format(", and waits for rank {}", blocked_on(rank));
  if (peer(rank).process->stopped()) {
    text += format("; its process {} is stopped", peer(rank).process->pid());
  }
  return text;
}

int Team::cause_of(int rank) const {
  // One that itself waits for another is not the cause. What a stopped rank says may be out of
  // date.
  for (int steps = 0; steps < size() && !peer(rank).process->stopped(); ++steps) {
    const int next = blocked_on(rank);
    if (next < 0 || next == this->rank()) break;
    rank = next;
  }
  return rank;
}

int Team::blocked_on(int rank) const {
  const ControlBlock& block = *peers_[static_cast<size_t>(rank)].block;
  const int other = block.phase.blocked_on.load(std::memory_order_relaxed) - 1;
  return other < size() ? other : -1;
}

void Team::fail(Failure failure) {
  failure.reporter = rank();
  const uint64_t word = failure.pack();
  for (const Peer& peer : peers_) {
    uint64_t none = 0;
    peer.block->abort.word.compare_exchange_strong(none, word);
  }
  wake_everyone();
  const std::lock_guard lock(hook_mutex_);
  if (failure_hook_) failure_hook_();
}

Status Team::give_up(const Status& status) {
  // What this rank has already told the others, in more words.
  if (status.code() == Code::kTimeout && failed() && failure().reporter == rank()) return status;
  // Memory of a process that is being killed fails before its end can be seen: wait for that a
  // while.
  const Deadline deadline = Deadline::after(Milliseconds(may_be_death(status.code()) ? 1000 : 20));
  do {
    for (const Peer& peer : peers_) {
      if (peer.process->dead()) process_died(peer.process->nonce());
    }
    if (failed()) return failure_status();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  } while (!deadline.passed());
  Failure failure;
  failure.code = Code::kRemoteFailed;
  failure.culprit = rank();
  failure.epoch = sequence();
  fail(failure);
  return status;
}

Status Team::unreachable(int rank, const Status& status) {
  if (status.code() == Code::kTimeout) {
    Failure failure;
    failure.code = Code::kTimeout;
    failure.culprit = rank;
    failure.epoch = sequence();
    fail(failure);
  }
  if (failed()) return failure_status();
  return status.with_prefix(format("memory of rank {}", rank));
}

void Team::wake_everyone() {
  Bell& bell = peers_[0].block->bell;
  bell.rings.fetch_add(1);
  futex_wake_all(bell.rings);
  for (int r = 0; r < size(); ++r) ring(r);
}

Status Team::failure_status() const {
  const Failure f = failure();
  const bool me = f.culprit == rank();
  std::string text;
  switch (f.code) {
    case Code::kAborted:
      text = me ? "this rank aborted it" : format("rank {} aborted it", f.culprit);
      break;
    case Code::kTimeout:
      if (me) {
        // The others' deadline: to this rank it is they who have failed.
        return error(Code::kRemoteFailed,
                     "{} cannot be used any more: rank {} gave up waiting for this rank in "
                     "operation {}. Destroy it and make a new one",
                     options_.name, f.reporter, f.epoch);
      }
      text = format("rank {} did not come in time to operation {}; {}", f.culprit, f.epoch,
                    whereabouts(f.culprit));
      break;
    case Code::kRemoteFailed:
      if (f.died) {
        text = format("rank {} (process {}) died around operation {}", f.culprit,
                      peer(f.culprit).process->pid(), f.epoch);
      } else if (me) {
        text = format("this rank failed in operation {}", f.epoch);
      } else {
        text = has_left(f.culprit) ? format("rank {} left before operation {}", f.culprit, f.epoch)
                                   : format("rank {} failed in operation {}", f.culprit, f.epoch);
      }
      break;
    default: text = code_text(f.code); break;
  }
  return error(f.code, "{} cannot be used any more: {}. Destroy it and make a new one",
               options_.name, text);
}

bool Team::has_left(int rank) const {
  return rank >= 0 && rank < size() &&
         own().left(rank, size()).load(std::memory_order_acquire) != 0;
}

void Team::process_died(uint64_t nonce) {
  for (int r = 0; r < size(); ++r) {
    if (r == rank() || peer(r).process->nonce() != nonce || has_left(r)) continue;
    Failure failure;
    failure.code = Code::kRemoteFailed;
    failure.culprit = r;
    failure.died = true;
    failure.epoch = sequence();
    log::warn(log::Subsys::kFault, "{}: rank {} (process {}) died", options_.name, r,
              peer(r).process->pid());
    fail(failure);
    return;
  }
}

void Team::ring(int rank) {
  Doorbell& bell = peers_[static_cast<size_t>(rank)].block->doorbell;
  bell.rings.fetch_add(1);
  if (bell.sleepers.load() > 0) futex_wake_all(bell.rings);
}

void Team::sleep_on_doorbell(uint32_t seen, Milliseconds limit) {
  Doorbell& bell = own().doorbell;
  bell.sleepers.fetch_add(1);
  futex_wait(bell.rings, seen, limit);
  bell.sleepers.fetch_sub(1);
}

}  // namespace zbccl::transport
