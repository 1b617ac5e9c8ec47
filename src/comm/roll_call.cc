#include "comm/roll_call.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "bootstrap/join_entry.h"
#include "bootstrap/rendezvous.h"

namespace zbccl::comm {
namespace {

// For what a rank says before it closes its socket to be seen by one that found it closed.
constexpr Milliseconds kLastWords(10);
// A rank whose socket is closed although its process lives has failed, of which the store is about
// to know, or is on its way out: sockets close before a process has ended.
constexpr Milliseconds kReason(2'000);
constexpr Milliseconds kLongestLook(160);

std::string_view as_text(const Showing& showing) {
  return {reinterpret_cast<const char*>(&showing), sizeof showing};
}

Result<Showing> parse(int rank, const std::string& bytes) {
  if (bytes.size() != sizeof(Showing)) {
    return error(Code::kVersionMismatch, "rank {} showed {} bytes, expected {}", rank, bytes.size(),
                 sizeof(Showing));
  }
  Showing showing;
  std::memcpy(static_cast<void*>(&showing), bytes.data(), sizeof showing);
  return showing;
}

// Of a process in this one's namespace; a zombie has ended too.
bool has_ended(int pid) {
  const UniqueFd life(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!life.valid()) return errno == ESRCH;
  pollfd item = {life.get(), POLLIN, 0};
  return poll(&item, 1, 0) > 0;
}

}  // namespace

Status RollCall::watch(int rank, std::shared_ptr<memory::PeerProcess> process) {
  if (process->is_self()) return {};
  if (!lives_.valid()) {
    lives_.reset(epoll_create1(EPOLL_CLOEXEC));
    if (!lives_.valid()) return system_error("cannot create an epoll set", errno);
    watched_.resize(hellos_.size());
  }
  epoll_event event = {};
  event.events = process->has_pidfd() ? EPOLLIN : EPOLLRDHUP;
  // Ranks that are threads of one process share its handle.
  if (epoll_ctl(lives_.get(), EPOLL_CTL_ADD, process->life_fd(), &event) != 0 && errno != EEXIST) {
    return system_error("epoll_ctl", errno);
  }
  watched_[static_cast<size_t>(rank)] = std::move(process);
  return {};
}

Status RollCall::ended(int peer) const {
  return error(Code::kRemoteFailed,
               "rank {} (process {}) ended while {} was being made. Make a new one without it",
               peer, hellos_[static_cast<size_t>(peer)].process.pid, name_);
}

Status RollCall::failure_of(int peer, const Showing& showing) const {
  const auto code = static_cast<Code>(showing.code);
  if (showing.culprit >= 0 && showing.culprit < static_cast<int>(hellos_.size()) &&
      showing.culprit != peer) {
    if (code == Code::kRemoteFailed) return ended(showing.culprit);
    return error(code, "rank {} could not connect to rank {}", peer, showing.culprit);
  }
  return error(code, "rank {} could not connect to its peers", peer);
}

Status RollCall::told_by(int peer, Deadline deadline, int& culprit) const {
  if (store_ == nullptr) return {};
  const auto shown = store_->get(format("{}/{}", show_name(), peer), deadline);
  if (!shown.ok()) {
    return shown.status().code() == Code::kRemoteFailed ? shown.status() : Status();
  }
  const auto showing = parse(peer, *shown);
  if (!showing.ok()) return showing.status();
  // It had nothing to complain of then; who has shown nothing yet tells whether the meeting failed.
  for (int r = 0; showing->code == 0 && r < static_cast<int>(hellos_.size()); ++r) {
    if (r == rank_ || r == peer) continue;
    const auto other =
        store_->get(format("{}/{}", show_name(), r), Deadline::after(Milliseconds(1)));
    if (other.status().code() == Code::kRemoteFailed) return other.status();
  }
  if (showing->code == 0) return {};
  culprit = showing->culprit >= 0 ? showing->culprit : peer;
  return failure_of(peer, *showing);
}

Status RollCall::left_at_deadline(int peer) const {
  std::vector<int> silent;
  for (int r = 0; store_ != nullptr && r < static_cast<int>(hellos_.size()); ++r) {
    const auto shown = store_->get(format("{}/{}", show_name(), r), Deadline::after(kLastWords));
    if (r != rank_ && !shown.ok()) silent.push_back(r);
  }
  const std::string others =
      silent.empty() ? ""
                     : format("; {} had not connected to everyone", bootstrap::rank_list(silent));
  return error(Code::kTimeout,
               "rank {} waited for the other ranks until its deadline: rank {} (process {}) had "
               "left {} by then{}",
               rank_, peer, hellos_[static_cast<size_t>(peer)].process.pid, name_, others);
}

Deadline RollCall::reason_time() const {
  return Deadline::after(std::min(kReason, std::max(kLastWords, deadline_.left())));
}

Status RollCall::unreachable(int peer, const Status& why, int& culprit) const {
  culprit = peer;
  if (Status told = told_by(peer, Deadline::after(kLastWords), culprit); !told.ok()) return told;
  const int pid = hellos_[static_cast<size_t>(peer)].process.pid;
  if (has_ended(pid)) return ended(peer);
  if (why.code() == Code::kTimeout) {
    return error(Code::kTimeout,
                 "rank {} waited for rank {} (process {}) until its deadline: it joined {}, and "
                 "then did not answer. Is it stopped?",
                 rank_, peer, pid, name_);
  }
  const Deadline end = reason_time();
  // A store on a busy machine takes its time to answer.
  for (Milliseconds look = kLastWords; !end.passed(); look = std::min(2 * look, kLongestLook)) {
    std::this_thread::sleep_for(Milliseconds(1));
    if (has_ended(pid)) return ended(peer);
    culprit = peer;
    if (Status told = told_by(peer, Deadline::after(look), culprit); !told.ok()) return told;
  }
  if (deadline_.passed()) return left_at_deadline(peer);
  return why.with_prefix(
      format("cannot reach rank {} (process {}) on this machine (are both in one network "
             "namespace?)",
             peer, pid));
}

void RollCall::show_failure(const Showing& mine) const {
  if (store_ != nullptr) (void)store_->set(format("{}/{}", show_name(), rank_), as_text(mine));
}

Result<std::vector<Showing>> RollCall::show(const Showing& mine, Deadline deadline) const {
  const auto shown =
      bootstrap::all_gather(*store_, show_name(), rank_, static_cast<int>(hellos_.size()),
                            as_text(mine), bootstrap::Wait(deadline, lives_.get()));
  if (!shown.ok()) {
    const Status& why = shown.status();
    if (why.code() != Code::kTimeout) return explain(why);
    return explain(error(Code::kTimeout,
                         "rank {} waited for the other ranks until its deadline: {}. They joined, "
                         "and were last seen connecting to each other's processes",
                         rank_, why.message()));
  }
  std::vector<Showing> all;
  for (size_t r = 0; r < shown->size(); ++r) {
    ZBCCL_ASSIGN_OR_RETURN(const Showing showing, parse(static_cast<int>(r), (*shown)[r]));
    all.push_back(showing);
  }
  return all;
}

Status RollCall::explain(const Status& status) const {
  if (status.code() == Code::kRemoteFailed) return status;
  const bool broken = status.code() == Code::kNetwork;
  const Deadline end = broken ? reason_time() : Deadline::after(Milliseconds(0));
  while (true) {
    for (size_t r = 0; r < watched_.size(); ++r) {
      if (watched_[r] == nullptr || !watched_[r]->dead()) continue;
      const int peer = static_cast<int>(r);
      // It may have ended because of another rank's end, and have said so.
      int culprit = peer;
      const Status told = told_by(peer, Deadline::after(Milliseconds(0)), culprit);
      return told.ok() ? ended(peer) : told;
    }
    if (end.passed()) return status;
    std::this_thread::sleep_for(Milliseconds(1));
  }
}

Status RollCall::check(const std::vector<Showing>& all) const {
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r].code != 0) return explain(failure_of(static_cast<int>(r), all[r]));
  }
  return {};
}

}  // namespace zbccl::comm
