// The ranks of a communicator as their GPUs reach each other: arenas, the view that kernels take,
// and what becomes of failures. One thread at a time, except abort() and state().
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/team_view.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/remote_memory.h"
#include "transport/cuda/stream_order.h"
#include "transport/team.h"

namespace zbccl::cuda {

// Host memory that kernels write and read while they run.
struct HostWords {
  FailureRecord record = {};
  uint32_t abort = 0;
  uint32_t to_peers = 0;  // what abort() leaves in the peers' arenas
};

class DeviceTeam {
 public:
  // Every rank brings `bytes` bytes and gets everyone's, by rank.
  using Exchange = std::function<Status(const void* mine, void* all, size_t bytes)>;

  // Collective over the ranks of `team`, each with a GPU of its own, or ranks of one process that
  // share one. An error is the same on every rank; so is null, where a GPU does not reach another
  // one's memory, with the reason in *unreached. `landing_bytes`: the least of all counts.
  static Result<std::unique_ptr<DeviceTeam>> create(transport::Team& team, int device,
                                                    uint64_t landing_bytes, Deadline deadline,
                                                    const Exchange& exchange,
                                                    std::string* unreached);
  // Waits for this rank's kernels, which end by themselves. The arena stays until release().
  ~DeviceTeam();
  DeviceTeam(const DeviceTeam&) = delete;
  DeviceTeam& operator=(const DeviceTeam&) = delete;

  int device() const { return device_; }
  int rank() const { return view_.rank; }
  int size() const { return view_.nranks; }
  transport::Team& host() { return team_; }
  DevicePool& pool() { return *pool_; }
  uint64_t landing_bytes() const { return landing_bytes_; }
  // The most ranks that are on one GPU; the same on every rank.
  int sharing() const { return sharing_; }
  // For a call with this deadline for each of its waits (zero: the team's).
  TeamView view(Milliseconds timeout) const;
  // What kernels sleep between looks once a wait has become long; 0: they do not.
  void set_nap(uint32_t nanoseconds) { view_.nap_ns = nanoseconds; }

  // Where the peers find [data, data + bytes), all of which they have mapped when this returns.
  // kUnsupported for device memory that cannot be registered.
  Result<Place> show(const void* data, size_t bytes);
  // Where this GPU reaches what rank `rank` has shown; null before it was shown.
  void* reach(int rank, const Place& place) const;
  // What kernels of this rank or of peers may use until the end: it is let go with the arena.
  void keep_until_left(std::shared_ptr<void> what) { kept_.push_back(std::move(what)); }
  // Copies to device memory that no kernel uses yet, and waits.
  Status write(void* to, const void* from, size_t bytes);
  // The same from device memory, once everything that was enqueued has run, graphs excepted.
  Status read(void* to, const void* from, size_t bytes, Deadline deadline);

  // The failure that the next call, on `stream`, has to return, if there is one. That the ranks'
  // calls did not agree is returned once; what takes the team back into use is then enqueued on
  // `stream`, or by order(), if that one is being captured. Every other failure stays.
  Status take_failure(cudaStream_t stream);
  // Puts what is enqueued next on `stream` behind everything that this team enqueued on another.
  Status order(cudaStream_t stream);
  // To be called after that.
  Status enqueued(cudaStream_t stream) { return order_.after(stream); }

  // Ends the waits of kernels here and on the peers. Any thread.
  void abort();
  // The first failure that a kernel of this rank has found or was told of, until take_failure() has
  // returned it. Any thread.
  Status state();
  // Gives the arena to whoever frees it once every peer has left.
  std::function<void()> take_arena();

 private:
  DeviceTeam(transport::Team& team, int device) : team_(team), device_(device) {}
  struct Introduction;
  struct Arena;
  Status open(uint64_t landing_bytes, Deadline deadline, const Exchange& exchange,
              std::string* unreached);
  Status finish(std::span<const Introduction> peers);
  Status make_arena(memory::Location* place);
  Status initialise_arena();
  Result<Reach> look(std::span<const Introduction> peers) const;
  Status connect(std::span<const Introduction> peers, Deadline deadline);
  Result<Reach> probe(Deadline deadline);
  Status describe(const FailureRecord& record);
  FailureKind recorded() const;
  Status find_failure();

  transport::Team& team_;
  int device_;
  DevicePool* pool_ = nullptr;
  TeamView view_;
  uint64_t landing_bytes_ = 0;
  int sharing_ = 1;
  void* arena_ = nullptr;
  std::vector<std::shared_ptr<void>> kept_;
  HostWords* words_ = nullptr;
  std::vector<std::shared_ptr<memory::PeerProcess>> processes_;
  std::vector<std::shared_ptr<RemoteMemory>> remotes_;

  cudaStream_t side_ = nullptr;  // for abort()
  StreamOrder order_;
  // How often the ranks' calls did not agree, and whether what comes after that has been enqueued.
  uint32_t generation_ = 0;
  bool recovered_ = true;

  std::mutex mutex_;  // guards what follows
  Clock::time_point first_seen_{};
  bool reported_ = false;
  Status failure_;
};

}  // namespace zbccl::cuda
