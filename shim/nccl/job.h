// The making of one communicator, which may take long: now, at the end of a group, or beside the
// caller.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

#include "communicator.h"

namespace zbccl::nccl {

class Job {
 public:
  // Gives a communicator, or null where this rank is in none.
  using Make = std::function<ncclResult_t(zbcclComm_t* made)>;

  // `target` becomes what is made, null if this rank is in none; `out`, which the caller waits for,
  // loses its handle where that fails. `parent`, which may be null, cannot be used meanwhile.
  Job(Make make, ncclComm* target, ncclComm* parent, ncclComm_t* out, bool blocking);

  bool blocking() const { return blocking_; }
  // On the calling thread; once.
  ncclResult_t run();
  ncclResult_t wait();
  // Instead of run(): it fails, without a message of its own.
  void cancel();
  // Whether `comm` was its target and is not made yet; then it is the job's no longer, and what is
  // still made will be destroyed.
  bool give_up(const ncclComm* comm);

 private:
  ncclResult_t fill_target(zbcclComm_t made);

  Make make_;
  ncclComm* target_;
  ncclComm* parent_;
  ncclComm_t* out_;
  const bool blocking_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool done_ = false;
  ncclResult_t result_ = ncclInProgress;
};

// Runs the job as its caller wants it: here, in the group that is open, or on a thread of its own,
// which is ncclInProgress.
ncclResult_t submit(std::shared_ptr<Job> job);
// All at once, since each waits for others; the first error, or ncclInProgress where some go on.
ncclResult_t run_jobs(const std::vector<std::shared_ptr<Job>>& jobs);

}  // namespace zbccl::nccl
