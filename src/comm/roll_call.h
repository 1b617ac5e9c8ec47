// Who is still there while a communicator comes to be: the second round of meeting in the store,
// and what a failure until then was due to. One thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/status.h"
#include "bootstrap/store.h"
#include "comm/hello.h"
#include "memory/peer_process.h"

namespace zbccl::comm {

class RollCall {
 public:
  // `store` may be null, for ranks that have a communicator to meet in already. `deadline`: of the
  // making.
  RollCall(bootstrap::Store* store, std::string name, int rank, std::vector<Hello> hellos,
           Deadline deadline)
      : store_(store),
        name_(std::move(name)),
        rank_(rank),
        hellos_(std::move(hellos)),
        deadline_(deadline) {}

  // The peer's end ends the second round.
  Status watch(int rank, std::shared_ptr<memory::PeerProcess> process);
  // The error for a peer whose process could not be connected to, because of `why`. `culprit` is
  // the rank to blame.
  Status unreachable(int peer, const Status& why, int& culprit) const;

  // Everyone's, by rank. A rank that ended is kRemoteFailed, naming it.
  Result<std::vector<Showing>> show(const Showing& mine, Deadline deadline) const;
  // For a rank that failed before: the others learn of it, and nobody is waited for.
  void show_failure(const Showing& mine) const;
  // `status`, or kRemoteFailed if a watched rank has ended.
  Status explain(const Status& status) const;
  // Ok if nobody's showing is a failure.
  Status check(const std::vector<Showing>& all) const;

 private:
  std::string show_name() const { return name_ + "/show"; }
  // What this rank has shown by the deadline, if it failed; ok if it has shown nothing.
  Status told_by(int peer, Deadline deadline, int& culprit) const;
  Status failure_of(int peer, const Showing& showing) const;
  // The error for a peer that lives and has left, as one does at its deadline.
  Status left_at_deadline(int peer) const;
  Status ended(int peer) const;
  // How long it is worth to wait for a reason.
  Deadline reason_time() const;

  bootstrap::Store* store_;
  std::string name_;
  int rank_;
  std::vector<Hello> hellos_;
  Deadline deadline_;
  std::vector<std::shared_ptr<memory::PeerProcess>> watched_;  // by rank
  UniqueFd lives_;  // readable once a watched process has ended
};

}  // namespace zbccl::comm
