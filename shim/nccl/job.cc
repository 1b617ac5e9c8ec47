#include "job.h"

#include <thread>
#include <utility>

#include "group.h"

namespace zbccl::nccl {

Job::Job(Make make, ncclComm* target, ncclComm* parent, ncclComm_t* out, bool blocking)
    : make_(std::move(make)), target_(target), parent_(parent), out_(out), blocking_(blocking) {
  if (parent_ != nullptr) parent_->state.store(ncclInProgress);
}

ncclResult_t Job::fill_target(zbcclComm_t made) {
  int rank = 0;
  int nranks = 0;
  int device = -1;
  ZBCCL_NCCL_TRY(result_of(zbcclCommUserRank(made, &rank)));
  ZBCCL_NCCL_TRY(result_of(zbcclCommCount(made, &nranks)));
  ZBCCL_NCCL_TRY(result_of(zbcclCommGetDevice(made, &device)));
  target_->inner = made;
  target_->rank = rank;
  target_->nranks = nranks;
  target_->device = device >= 0 ? device : -1;
  return ncclSuccess;
}

ncclResult_t Job::run() {
  zbcclComm_t made = nullptr;
  ncclResult_t result = guard([&] { return make_(&made); });
  const std::lock_guard lock(mutex_);
  if (result == ncclSuccess && made != nullptr && target_ != nullptr) result = fill_target(made);
  const bool taken = target_ != nullptr && target_->inner == made;
  if (made != nullptr && !taken) zbcclCommDestroy(made);
  if (target_ != nullptr) {
    target_->state.store(result, std::memory_order_release);
    if (result != ncclSuccess && blocking_) {
      // Nobody waits for this handle to settle.
      retire(std::exchange(target_, nullptr));
      *out_ = nullptr;
    }
  }
  if (parent_ != nullptr) parent_->state.store(ncclSuccess, std::memory_order_release);
  make_ = nullptr;
  result_ = result;
  done_ = true;
  ended_.notify_all();
  return result;
}

ncclResult_t Job::wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [&] { return done_; });
  return result_;
}

void Job::cancel() {
  make_ = [](zbcclComm_t*) { return ncclInvalidUsage; };
  run();
}

bool Job::give_up(const ncclComm* comm) {
  const std::lock_guard lock(mutex_);
  if (done_ || target_ != comm) return false;
  target_ = nullptr;
  return true;
}

namespace {

void run_beside(const std::shared_ptr<Job>& job) {
  std::thread([job] { job->run(); }).detach();
}

}  // namespace

ncclResult_t submit(std::shared_ptr<Job> job) {
  if (Group::open()) {
    Group::of_this_thread().add(std::move(job));
    return ncclSuccess;
  }
  if (job->blocking()) return job->run();
  run_beside(job);
  return ncclInProgress;
}

ncclResult_t run_jobs(const std::vector<std::shared_ptr<Job>>& jobs) {
  if (jobs.empty()) return ncclSuccess;
  if (jobs.size() == 1 && jobs.front()->blocking()) return jobs.front()->run();
  for (const auto& job : jobs) run_beside(job);
  ncclResult_t result = ncclSuccess;
  for (const auto& job : jobs) {
    const ncclResult_t ended = job->blocking() ? job->wait() : ncclInProgress;
    if (result == ncclSuccess || (result == ncclInProgress && ended != ncclSuccess)) result = ended;
  }
  return result;
}

}  // namespace zbccl::nccl
