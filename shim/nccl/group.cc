#include "group.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "define.h"

namespace zbccl::nccl {

constinit thread_local int Group::depth_ = 0;

Group& Group::of_this_thread() {
  thread_local Group group;
  return group;
}

ncclResult_t Group::add(const Call& call) {
  calls_.push_back(call);
  calls_.back().number = call.comm->grouped++;
  calls_.back().generation = call.comm->generation;
  return ncclSuccess;
}

ncclResult_t Group::refuse(ncclResult_t why) {
  if (refused_ == ncclSuccess) refused_ = why;
  return why;
}

ncclResult_t Group::end() {
  if (depth_ == 0) {
    return fail(ncclInvalidUsage, "ncclGroupEnd without an ncclGroupStart on this thread");
  }
  if (depth_ > 1) {
    --depth_;
    return ncclSuccess;
  }
  if (refused_ != ncclSuccess) {
    const ncclResult_t refused = refused_;
    cancel();
    return refused;  // with the message of the call that was refused
  }
  depth_ = 0;
  ncclResult_t result = ncclSuccess;
  if (!jobs_.empty()) result = run_jobs(std::exchange(jobs_, {}));
  if (!tasks_.empty() && result == ncclSuccess) result = run_tasks(std::exchange(tasks_, {}));
  for (const Call& call : calls_) call.comm->grouped = 0;
  if (!calls_.empty() && (result == ncclSuccess || result == ncclInProgress)) {
    if (const ncclResult_t ran = run_calls(); ran != ncclSuccess) result = ran;
  }
  calls_.clear();
  return result;
}

ncclResult_t Group::run_calls() {
  for (const Call& call : calls_) {
    if (call.comm->inner != nullptr && call.comm->generation == call.generation) continue;
    return fail(ncclInvalidUsage, "a communicator was destroyed before the group's end");
  }
  return calls_.size() == 1 ? run(calls_.front()) : run_together(calls_);
}

void Group::cancel() {
  depth_ = 0;
  refused_ = ncclSuccess;
  for (const Call& call : calls_) call.comm->grouped = 0;
  calls_.clear();
  tasks_.clear();
  for (const auto& job : std::exchange(jobs_, {})) job->cancel();
}

ncclResult_t Group::run_tasks(const std::vector<std::function<ncclResult_t()>>& tasks) {
  if (tasks.size() == 1) return tasks.front()();
  std::vector<ncclResult_t> results(tasks.size(), ncclSuccess);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < tasks.size(); ++i) {
    threads.emplace_back([&, i] { results[i] = guard(tasks[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  const auto failed = std::find_if(results.begin(), results.end(),
                                   [](ncclResult_t result) { return result != ncclSuccess; });
  return failed != results.end() ? *failed : ncclSuccess;
}

ncclResult_t run_or_defer(std::function<ncclResult_t()> task) {
  if (!Group::open()) return task();
  Group::of_this_thread().add(std::move(task));
  return ncclSuccess;
}

}  // namespace zbccl::nccl

using zbccl::nccl::Group;
using zbccl::nccl::guard;

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclGroupStart, ()) {
  Group::start();
  return ncclSuccess;
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclGroupEnd, ()) {
  return guard([] { return Group::of_this_thread().end(); });
}

// zbccl has no estimate of time to give, so the calls are left undone, as after a simulation.
ZBCCL_NCCL_DEFINE(ncclResult_t, ncclGroupSimulateEnd, (ncclSimInfo_t * /*info*/)) {
  return guard([] {
    Group::of_this_thread().cancel();
    return zbccl::nccl::fail(ncclInvalidUsage,
                             "ncclGroupSimulateEnd: zbccl does not estimate times; the group's "
                             "calls were not made");
  });
}
