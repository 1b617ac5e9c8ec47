#include "comm/work.h"

#include "base/thread.h"

namespace zbccl::comm {

namespace {

constexpr int kYields = 1000;  // of a wait that asks, before it naps

Status inherited_work() {
  return error(Code::kInvalidUsage,
               "the work was started before fork(); its result is the parent's to wait for");
}

}  // namespace

void Work::complete(const Status& status) {
  // Notified under the lock: the owner may free the handle as soon as it sees that the work is
  // done.
  const std::lock_guard lock(mutex_);
  status_ = status;
  done_ = true;
  changed_.notify_all();
}

void Work::watch(Poll poll) {
  const std::lock_guard lock(mutex_);
  poll_ = std::move(poll);
  changed_.notify_all();
}

// Under the lock.
bool Work::ask() const {
  if (!done_ && poll_) done_ = poll_(&status_);
  return done_;
}

Status Work::wait(Milliseconds timeout) {
  if (inherited()) return inherited_work();
  const Deadline deadline = timeout.count() <= 0 ? Deadline::never() : Deadline::after(timeout);
  std::unique_lock lock(mutex_);
  const auto moved = [this] { return done_ || poll_; };
  if (timeout.count() <= 0) {
    changed_.wait(lock, moved);
  } else {
    changed_.wait_for(lock, timeout, moved);
  }
  for (int round = 0; !ask(); ++round) {
    if (deadline.passed()) {
      return error(Code::kTimeout, "the work was not done after {} ms; it goes on",
                   timeout.count());
    }
    lock.unlock();
    if (round < kYields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    lock.lock();
  }
  return status_;
}

bool Work::done() const {
  if (inherited()) return true;
  const std::lock_guard lock(mutex_);
  return ask();
}

Status Work::status() const {
  if (inherited()) return inherited_work();
  const std::lock_guard lock(mutex_);
  return status_;
}

CollectiveLane::~CollectiveLane() {
  drain();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void CollectiveLane::post(std::function<void()> call) {
  const std::lock_guard lock(mutex_);
  calls_.push_back(std::move(call));
  if (!thread_.joinable()) {
    thread_ = start_thread("zbccl-coll", [this] { run(); });
  }
  changed_.notify_all();
}

bool CollectiveLane::idle() const {
  const std::lock_guard lock(mutex_);
  return calls_.empty() && !running_;
}

void CollectiveLane::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return calls_.empty() && !running_; });
}

void CollectiveLane::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return !calls_.empty() || stopping_; });
    if (calls_.empty()) return;
    auto call = std::move(calls_.front());
    calls_.pop_front();
    running_ = true;
    lock.unlock();
    call();
    call = nullptr;  // gives leases back before anybody sees the lane idle
    lock.lock();
    running_ = false;
    changed_.notify_all();
  }
}

TransferLane::~TransferLane() {
  drain();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void TransferLane::post(const std::shared_ptr<transport::Transfer>& transfer) {
  channels_.post(transfer);
  const std::lock_guard lock(mutex_);
  ++posted_;
  pending_ = true;
  if (!thread_.joinable()) {
    thread_ = start_thread("zbccl-p2p", [this] { run(); });
  }
  changed_.notify_all();
}

void TransferLane::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !pending_; });
}

void TransferLane::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return pending_ || stopping_; });
    if (!pending_) return;
    const uint64_t posted = posted_;
    lock.unlock();
    const uint32_t seen = team_.doorbell_rings();
    const bool pending = channels_.progress();
    if (pending) team_.sleep_on_doorbell(seen, Milliseconds(20));
    lock.lock();
    // A transfer posted meanwhile has not been looked at by this round.
    pending_ = pending || posted != posted_;
    if (!pending_) changed_.notify_all();
  }
}

}  // namespace zbccl::comm
