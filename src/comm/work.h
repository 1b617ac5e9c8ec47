// Handles of asynchronous calls and the threads that run them.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/fork_guard.h"
#include "base/status.h"
#include "transport/channels.h"

namespace zbccl::comm {

// One asynchronous call. Any thread of the process that made it; in a forked child, where nobody
// runs it, it is done at once with kInvalidUsage.
class Work {
 public:
  // Tells, when asked, whether the call is over, and then its result.
  using Poll = std::function<bool(Status* status)>;

  Work() = default;
  // Nobody calls complete(): whoever waits asks `poll`.
  explicit Work(Poll poll) : poll_(std::move(poll)) {}
  void watch(Poll poll);

  void complete(const Status& status);
  // The call's result once it is done; kTimeout leaves it running. A timeout of zero waits as long
  // as it takes.
  Status wait(Milliseconds timeout);
  bool done() const;
  // Once done.
  Status status() const;

 private:
  // Nothing else is touched in a forked child: the mutex may be held for ever.
  bool inherited() const { return generation_ != fork_generation(); }
  bool ask() const;

  uint32_t generation_ = fork_generation();
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  mutable bool done_ = false;
  mutable Status status_;
  Poll poll_;
};

// Runs collectives one after the other, in the order they were posted, on a thread that is started
// by the first.
class CollectiveLane {
 public:
  ~CollectiveLane();
  void post(std::function<void()> call);
  bool idle() const;
  void drain();

 private:
  void run();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> calls_;
  bool running_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

// Moves asynchronous sends and receives forward, on a thread that is started by the first.
class TransferLane {
 public:
  TransferLane(transport::Team& team, transport::Channels& channels)
      : team_(team), channels_(channels) {}
  ~TransferLane();
  void post(const std::shared_ptr<transport::Transfer>& transfer);
  void drain();

 private:
  void run();

  transport::Team& team_;
  transport::Channels& channels_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t posted_ = 0;
  bool pending_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace zbccl::comm
