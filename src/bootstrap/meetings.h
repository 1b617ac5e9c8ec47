// Who attends what, of the clients of one TCP store, and what became of it. Runs on the server's
// thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"

namespace zbccl::bootstrap {

// What a meeting needs of the connection of one of its ranks.
class Attendee {
 public:
  virtual ~Attendee() = default;
  // The meeting has failed: see Meetings::failure().
  virtual void on_meeting_failed() = 0;
  // The server runs in the process of this rank.
  virtual void on_host(int rank) = 0;
};

class Meetings {
 public:
  // `process` is the server's process_token().
  explicit Meetings(uint64_t process) : process_(process) {}

  // One rank of `nranks`. Whoever comes when that many have come already is one too many: it counts
  // for nothing, and is told nothing.
  void attend(const std::string& name, Attendee& attendee, int rank, int nranks, uint64_t process);
  // An outcome that is an error ends the meeting for the others too: each of them is needed.
  void leave(const std::string& name, Attendee& attendee, int rank, const Status& outcome);
  // Its connection has ended without a goodbye.
  void lose(Attendee& attendee);

  // Why `attendee` need not wait for `key`; null if it may.
  const Status* failure(const Attendee& attendee, std::string_view key) const;
  // A meeting has failed before all its ranks had come: the others are to hear of that.
  bool awaits_ranks() const;

 private:
  struct Member {
    Attendee* attendee;
    int rank;
  };
  struct Meeting {
    int came = 0;
    int nranks = 0;  // the most that anybody expects
    int host = -1;
    std::vector<Member> members;
    Status failure;
  };

  static void fail(Meeting& meeting, Status failure);

  const uint64_t process_;
  std::unordered_map<std::string, Meeting> meetings_;
};

}  // namespace zbccl::bootstrap
