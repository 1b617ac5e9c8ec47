// Point-to-point traffic of a team: sends and receives that progress together, in order for each
// peer and direction.
//
// The sender offers its buffer in its own control block; the receiver compares, copies straight
// from the sender's buffer to its own, and answers. Any thread may post and wait; whoever waits
// moves everything forward.
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
  struct Lane {
    Queue sends;
    Queue receives;
    uint32_t sent = 0;      // epoch of the last offer
    uint32_t received = 0;  // epoch of the last answer
  };

  bool advance(Queue& queue, Lane& lane, std::vector<std::shared_ptr<Transfer>>* finished);
  // True once the transfer is done, its status set.
  bool step(Transfer& transfer, Lane& lane);
  bool step_send(Transfer& transfer, Lane& lane);
  bool step_receive(Transfer& transfer, Lane& lane);
  Status receive(Transfer& transfer, const Offer& offer);

  Team& team_;
  std::mutex mutex_;
  std::vector<Lane> lanes_;
};

}  // namespace zbccl::transport
