// The meetings that one client of a store attends, and until when its requests for them wait for
// the server's answer. Any thread.
#pragma once

#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"

namespace zbccl::bootstrap {

class Attendances {
 public:
  // See Store::attend().
  void add(std::string_view name, int rank, Deadline deadline);
  void remove(std::string_view name, int rank);
  bool any() const;

  // By when the server's answer to a request about `key` has to be there. `usual` where the key
  // belongs to no meeting. Otherwise a moment after the meeting's deadline; past that, where the
  // last questions are asked, a moment after now; and not before `wait`, to which the server was
  // asked to wait itself.
  Deadline answer_by(std::string_view key, Deadline usual, Deadline wait) const;
  Deadline answer_by(std::string_view key, Deadline usual) const {
    return answer_by(key, usual, Deadline::after(Milliseconds(0)));
  }
  // The deadline of the key's meeting has passed.
  bool over(std::string_view key) const;

 private:
  struct Attendance {
    std::string name;
    int rank;
    Deadline deadline;
  };
  const Attendance* find(std::string_view key) const;

  mutable std::mutex mutex_;
  std::vector<Attendance> all_;
};

}  // namespace zbccl::bootstrap
