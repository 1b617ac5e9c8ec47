#include "memory/cuda/janitor.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <system_error>

#include "base/thread.h"

namespace zbccl::cuda {
namespace {

// The thread lives while there is something to do, so that an idle process has none.
struct Queue {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> jobs;
  uint64_t given = 0;
  uint64_t done = 0;
  bool running = false;
};

Queue& queue() {
  static Queue* const it = new Queue;  // a job may outlast main()
  return *it;
}

void work() {
  Queue& q = queue();
  std::unique_lock lock(q.mutex);
  while (!q.jobs.empty()) {
    const std::function<void()> job = std::move(q.jobs.front());
    q.jobs.pop_front();
    lock.unlock();
    job();
    lock.lock();
    ++q.done;
    q.changed.notify_all();
  }
  q.running = false;
}

}  // namespace

void run_later(std::function<void()> job) {
  Queue& q = queue();
  const std::lock_guard lock(q.mutex);
  q.jobs.push_back(std::move(job));
  ++q.given;
  if (q.running) return;
  try {
    start_thread("zbccl-unmap", work).detach();
    q.running = true;
  } catch (const std::system_error&) {
    // No thread to be had now; the next job tries again.
  }
}

bool wait_for_janitor(Deadline deadline) {
  Queue& q = queue();
  std::unique_lock lock(q.mutex);
  const uint64_t target = q.given;
  const auto reached = [&] { return q.done >= target; };
  return q.changed.wait_until(lock, Clock::now() + deadline.left(), reached);
}

}  // namespace zbccl::cuda
