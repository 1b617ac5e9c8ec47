// What a thread calls between ncclGroupStart and ncclGroupEnd. Each thread has its own.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "call.h"
#include "job.h"

namespace zbccl::nccl {

class Group {
 public:
  static Group& of_this_thread();

  static bool open() { return depth_ > 0; }
  static void start() { ++depth_; }
  // The outermost end makes all calls.
  ncclResult_t end();
  // Leaves all of it undone.
  void cancel();

  ncclResult_t add(const Call& call);
  void add(std::shared_ptr<Job> job) { jobs_.push_back(std::move(job)); }
  // Something that waits for other ranks, which may be this thread's too.
  void add(std::function<ncclResult_t()> task) { tasks_.push_back(std::move(task)); }
  // What a call gives back that is refused when it is made; the end will not start the others.
  ncclResult_t refuse(ncclResult_t why);

 private:
  ncclResult_t run_calls();
  static ncclResult_t run_tasks(const std::vector<std::function<ncclResult_t()>>& tasks);

  static thread_local int depth_;
  std::vector<Call> calls_;
  std::vector<std::shared_ptr<Job>> jobs_;
  std::vector<std::function<ncclResult_t()>> tasks_;
  ncclResult_t refused_ = ncclSuccess;
};

// Makes the calls of a group: those on device memory are enqueued, those on host memory progress
// all at once, and each communicator's collectives keep their order.
ncclResult_t run_together(std::vector<Call>& calls);
// The same for calls of which all are on host memory and none has an operator that a user made.
ncclResult_t run_on_host(const std::vector<Call>& calls);

// Runs `task` now, or, where the thread has a group open, at its end beside the others.
ncclResult_t run_or_defer(std::function<ncclResult_t()> task);

}  // namespace zbccl::nccl
