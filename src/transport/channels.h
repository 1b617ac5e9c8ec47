// Point-to-point traffic of a team: sends and receives that progress together, in order for each
// peer, direction and tag.
//
// The sender offers its buffer in its own control block; the receiver compares, copies straight
// from the sender's buffer to its own, and answers. Any thread may post and wait; whoever waits
// moves everything forward.
//
// A sender offers one message at a time. One whose tag nobody asks for yet is put aside, in a copy
// that is counted as staged, where it would keep others from coming that are asked for.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/types.h"
#include "transport/buffer.h"
#include "transport/team.h"

namespace zbccl::transport {

struct Transfer {
  bool is_send = false;
  int peer = 0;
  void* data = nullptr;  // read only if is_send
  size_t count = 0;
  DataType type = DataType::kF32;
  uint32_t tag = 0;  // of the message that a receive takes
  Milliseconds timeout{0};
  std::function<void(const Status&)> on_done;  // may be empty; called without locks held

  // Kept by Channels.
  Deadline deadline = Deadline::never();
  LocalBuffer buffer;
  bool offered = false;
  uint32_t epoch = 0;
  bool done = false;
  Status status;
};

class Channels {
 public:
  explicit Channels(Team& team);

  void post(const std::shared_ptr<Transfer>& transfer);
  // Until it is done; returns its result.
  Status wait(const std::shared_ptr<Transfer>& transfer);
  // Moves what can move; true while something is pending.
  bool progress();

 private:
  using Queue = std::deque<std::shared_ptr<Transfer>>;
  using Finished = std::vector<std::shared_ptr<Transfer>>;
  // A message that was put aside. Nobody waits for its tag: the next receive of it takes it.
  struct Parcel {
    uint32_t tag = 0;
    uint32_t type = 0;
    uint64_t count = 0;
    std::shared_ptr<void> bytes;
  };
  struct Lane {
    Queue sends;
    Queue receives;
    std::vector<Parcel> parcels;
    uint32_t sent = 0;      // epoch of the last offer
    uint32_t received = 0;  // epoch of the last answer
  };

  // True while something is pending.
  bool advance_sends(Lane& lane, Finished* finished);
  bool advance_receives(int peer, Lane& lane, Finished* finished);
  // True once the send is done, its status set.
  bool step_send(Transfer& transfer, Lane& lane);
  // Takes the message that the peer offers, if any, to the first receive of its tag.
  bool take(int peer, Lane& lane, Finished* finished);
  // Where the message is there already: true, with the receive's status set.
  bool unpack(Transfer& transfer, Lane& lane);
  Status put_aside(int peer, Lane& lane, const Offer& offer);
  Status fetch(int peer, const Offer& offer, void* data, Milliseconds limit);
  void answer(int peer, Lane& lane, bool accepted, uint64_t count, uint32_t type);
  // Sets the status of what will not end any more; the team has failed then.
  bool overdue(Transfer& transfer, const Lane& lane, bool gone);

  Team& team_;
  std::mutex mutex_;
  std::vector<Lane> lanes_;
};

}  // namespace zbccl::transport
