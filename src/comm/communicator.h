// One rank's membership in a group: runs operations in order, blocking or not, and ends them when
// something fails.
//
// One thread at a time, except abort(), state() and stats(), which any thread may call.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "bootstrap/store.h"
#include "collectives/collective.h"
#include "comm/hello.h"
#include "comm/work.h"
#include "memory/exchange.h"
#include "plan/plan.h"
#include "transport/channels.h"
#include "transport/team.h"

namespace zbccl::comm {

struct Options {
  Milliseconds timeout{0};       // 0: ZBCCL_TIMEOUT
  Milliseconds init_timeout{0};  // 0: ZBCCL_INIT_TIMEOUT
  Wait wait = Wait::kAuto;
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

  // Collective. nullptr for a negative color.
  Result<std::unique_ptr<Communicator>> split(int color, int key, const Options& options);

  // Blocks, unless `work` is given: then returns at once and *work is a handle.
  Status run(const collectives::Collective& call, std::shared_ptr<Work>* work);
  Status send(const void* data, size_t count, DataType type, int peer, Milliseconds timeout,
              std::shared_ptr<Work>* work);
  Status recv(void* data, size_t count, DataType type, int peer, Milliseconds timeout,
              std::shared_ptr<Work>* work);

  void abort();
  Status state() const;
  Stats stats() const;
  plan::Algorithm last_algorithm() const { return last_algorithm_.load(std::memory_order_relaxed); }
  // kInvalidUsage in a forked child.
  Status check_process() const;

 private:
  Communicator() = default;
  Status execute(const collectives::Collective& call);
  Status transfer(bool is_send, void* data, size_t count, DataType type, int peer,
                  Milliseconds timeout, std::shared_ptr<Work>* work);
  void account(const Status& status, uint64_t bytes);

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
  std::unique_ptr<CollectiveLane> collective_lane_;
  std::unique_ptr<TransferLane> transfer_lane_;
  uint64_t observer_ = 0;
  int splits_ = 0;
  uint64_t metadata_bytes_ = 0;

  std::mutex run_mutex_;  // one collective at a time, whoever runs it
  std::atomic<plan::Algorithm> last_algorithm_{plan::Algorithm::kNone};
  std::atomic<uint64_t> operations_{0};
  std::atomic<uint64_t> failures_{0};
  std::atomic<uint64_t> bytes_{0};

  friend class Builder;
};

}  // namespace zbccl::comm
