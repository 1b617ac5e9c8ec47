// One rank's membership in a group: runs operations in order, blocking or not, and ends them when
// something fails.
//
// One thread at a time, except abort(), state() and stats(), which any thread may call.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "bootstrap/store.h"
#include "collectives/collective.h"
#include "collectives/device_engine.h"
#include "comm/hello.h"
#include "comm/work.h"
#include "memory/exchange.h"
#include "observe/counters.h"
#include "plan/plan.h"
#include "transport/channels.h"
#include "transport/team.h"

namespace zbccl::comm {

inline constexpr int kDeviceAuto = -1;
inline constexpr int kDeviceNone = -2;

struct Options {
  Milliseconds timeout{0};       // 0: ZBCCL_TIMEOUT
  Milliseconds init_timeout{0};  // 0: ZBCCL_INIT_TIMEOUT
  Wait wait = Wait::kAuto;
  int device = kDeviceAuto;  // as in zbcclConfig_t
  int max_blocks = 0;
  // The current device of the thread that asked, where it is not the one that makes the
  // communicator; kDeviceNone: it has none.
  int current_device = kDeviceAuto;

  int chosen_device() const { return device == kDeviceAuto ? current_device : device; }
};

struct Stats {
  uint64_t operations = 0;
  uint64_t failures = 0;
  uint64_t bytes = 0;
  uint64_t staged_bytes = 0;
  uint64_t landing_bytes = 0;
  uint64_t metadata_bytes = 0;
  uint64_t wait_ns = 0;
};

// One send or receive.
struct TransferCall {
  bool is_send = false;
  void* data = nullptr;  // only read if is_send
  size_t count = 0;
  DataType type = DataType::kF32;
  int peer = 0;
  Milliseconds timeout{0};  // 0: the communicator's
  collectives::Launch launch;
  int tag = 0;  // from 0; of host memory only
};

// An operation that stands beside the collectives: what it does on the team, and what it uses.
struct Task {
  Operation operation = Operation::kNone;
  std::function<Status(collectives::Context& context)> body;
  std::vector<const void*> memory;  // leased while an asynchronous call uses it
  collectives::Launch launch;
  bool on_device = false;  // the body enqueues on the stream and returns
};

class Communicator {
 public:
  // Collective over `nranks` callers with the same store and name, each with another rank. The
  // store is needed no longer than this call.
  static Result<std::unique_ptr<Communicator>> create(bootstrap::Store& store,
                                                      const std::string& name, int rank, int nranks,
                                                      const Options& options);
  // Waits for asynchronous work, says that this rank leaves, and gives the memory back once no peer
  // uses it.
  ~Communicator();

  int rank() const { return team_->rank(); }
  int size() const { return team_->size(); }
  // Ordinal of this rank's GPU, or kDeviceNone.
  int device() const { return engine_ != nullptr ? engine_->device() : kDeviceNone; }

  // Collective. nullptr for a negative color.
  Result<std::unique_ptr<Communicator>> split(int color, int key, const Options& options);

  // What a call must fulfil before any other rank hears of it; run() and transfer() begin with it.
  Status check(const collectives::Collective& call) const;
  Status check(const TransferCall& call) const;
  // Blocks, unless `work` is given: then returns at once, and *work, which is made where it is
  // null, completes when the call has.
  Status run(const collectives::Collective& call, std::shared_ptr<Work>* work);
  Status run(Task task, std::shared_ptr<Work>* work);
  Status transfer(const TransferCall& call, std::shared_ptr<Work>* work);
  // Blocks; all sends and receives move at once. The first error.
  Status transfer_all(const std::vector<TransferCall>& calls);

  // Whether a call is on memory of the GPU, by its buffers or, where this rank has none, by its
  // stream. Such a call is enqueued, and waits for nothing on the host.
  bool on_device(const collectives::Collective& call) const;
  bool on_device(const TransferCall& call) const;
  // Such calls, which move at once. Each of `works` is as in run(), and completes when all have
  // moved.
  Status transfer_on_device(std::span<const TransferCall> calls,
                            std::span<std::shared_ptr<Work>* const> works);

  void abort();
  Status state() const;
  Stats stats() const;
  const char* last_algorithm() const { return last_algorithm_.load(std::memory_order_relaxed); }
  // kInvalidUsage in a forked child.
  Status check_process() const;

 private:
  Communicator() = default;
  Status execute(const collectives::Collective& call);
  Status execute(const Task& task);
  // Runs `body`, which gets the context, as the one operation of this communicator.
  template <typename Body>
  Status operate(const collectives::Launch& launch, Body&& body);
  // Runs `execute_it` on the lane, with leases of `memory`.
  Status post(std::function<Status()> execute_it, std::span<const void* const> memory,
              std::shared_ptr<Work>* work);
  bool queued() const { return collective_lane_ != nullptr && !collective_lane_->idle(); }
  // Whether its stream says that the call is on device memory where no buffer tells.
  bool names_device(const collectives::Launch& launch) const;
  Status run_on_device(const collectives::Collective& call, std::shared_ptr<Work>* work);
  Status run_on_device(const Task& task, std::shared_ptr<Work>* work);
  Status check_device() const;
  static Status check_streamless(const collectives::Launch& launch);
  Status complete_on_device(const collectives::Launch& launch, std::shared_ptr<Work>* work);
  collectives::HostPath host_path();
  Status make_engine(Deadline deadline);
  std::shared_ptr<transport::Transfer> make_transfer(const TransferCall& call) const;
  void account(const Status& status, uint64_t bytes);  // a transfer; any thread
  void account_failure(const Status& status);

  // Every rank brings `bytes` bytes and gets everyone's, by rank: an all_gather of the library's
  // own, which is not counted as an operation.
  Status exchange(const void* mine, void* all, size_t bytes, Milliseconds timeout);

  uint32_t generation_ = 0;
  std::string name_;
  Options options_;
  plan::Tuning tuning_;
  std::vector<Hello> hellos_;  // by rank
  std::shared_ptr<memory::Exchange> exchange_;
  std::unique_ptr<transport::Team> team_;
  std::unique_ptr<transport::Channels> channels_;
  std::unique_ptr<collectives::DeviceEngine> engine_;
  std::unique_ptr<CollectiveLane> collective_lane_;
  std::unique_ptr<TransferLane> transfer_lane_;
  uint64_t observer_ = 0;
  int splits_ = 0;
  uint64_t metadata_bytes_ = 0;

  // One thread at a time runs collectives: the caller's, or the lane's, which the caller waits for
  // until it is idle before it runs one itself. A second caller is found out, as a rule, by this.
  std::atomic<bool> running_{false};
  observe::Count collectives_;
  observe::Count collective_bytes_;
  std::atomic<const char*> last_algorithm_{plan::algorithm_name(plan::Algorithm::kNone)};
  std::atomic<uint64_t> transfers_{0};
  std::atomic<uint64_t> transfer_bytes_{0};
  std::atomic<uint64_t> failures_{0};

  friend class Builder;
};

}  // namespace zbccl::comm
