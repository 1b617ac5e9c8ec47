#include "memory/cuda/remote_memory.h"

#include "memory/cuda/device_pool.h"
#include "memory/cuda/probe_page.h"

namespace zbccl::cuda {
namespace {

// Of a copy of some bytes to a GPU; only one that is broken takes longer.
constexpr auto kSettleTime = Milliseconds(30'000);

// Its pool, with the page that peers will ask for.
Status opened(int device) {
  ZBCCL_ASSIGN_OR_RETURN(DevicePool* const pool, DevicePool::of(device));
  const auto page = ProbePage::of(*pool);
  return page.ok() ? Status() : page.status();
}

}  // namespace

Result<std::shared_ptr<RemoteMemory>> RemoteMemory::open(
    const std::shared_ptr<memory::PeerProcess>& process, const DeviceId& id, int local_device) {
  ZBCCL_RETURN_IF_ERROR(opened(local_device));
  std::shared_ptr<RemoteMemory> remote =
      Imports::process().find(process->nonce(), id, local_device);
  if (remote == nullptr) {
    remote = std::shared_ptr<RemoteMemory>(new RemoteMemory);
    remote->owner_ = process->nonce();
    remote->id_ = id;
    remote->self_ = process->is_self();
    ZBCCL_RETURN_IF_ERROR(remote->table_.take(local_device));
    remote->local_ = local_device;
    if (remote->self_) ZBCCL_RETURN_IF_ERROR(remote->reach_own());
    // An entry is written only over one that has arrived.
    ZBCCL_RETURN_IF_ERROR(wait_settled(remote->table_, Deadline::after(kSettleTime)));
    ZBCCL_ASSIGN_OR_RETURN(remote, Imports::process().enlist(std::move(remote)));
  }
  ZBCCL_RETURN_IF_ERROR(wait_settled(remote->table_, Deadline::after(kSettleTime)));
  return remote;
}

// The owner is a GPU of this process, too.
Status RemoteMemory::reach_own() {
  ZBCCL_ASSIGN_OR_RETURN(const std::optional<int> ordinal, device_ordinal(id_));
  if (!ordinal) return error(Code::kInvalidArgument, "{} is no GPU of this process", id_.text());
  owner_device_ = *ordinal;
  ZBCCL_RETURN_IF_ERROR(opened(owner_device_));
  if (local_ == owner_device_) return {};
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  int can = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(
      d->device_can_access_peer(&can, local_, owner_device_),
      format("cannot ask whether GPU {} reaches GPU {}", local_, owner_device_));
  if (can == 0) {
    return error(Code::kUnsupported, "GPU {} does not reach the memory of GPU {}", local_,
                 owner_device_);
  }
  ZBCCL_ASSIGN_OR_RETURN(CUcontext context, primary_context(owner_device_));
  const DeviceGuard guard(local_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  const RelaxedCapture relaxed(*d);
  const CUresult result = d->ctx_enable_peer_access(context, 0);
  if (result != CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) {
    ZBCCL_RETURN_IF_CUDA_ERROR(
        result, format("cannot let GPU {} reach memory of GPU {}", local_, owner_device_));
  }
  return {};
}

RemoteMemory::~RemoteMemory() {
  if (local_ >= 0) Imports::process().strike(this);
}

std::optional<Reach> RemoteMemory::reach() const {
  const std::lock_guard lock(reach_mutex_);
  return reach_;
}

void RemoteMemory::set_reach(const Reach& reach) {
  const std::lock_guard lock(reach_mutex_);
  reach_ = reach;
}

Status RemoteMemory::set(uint32_t segment, uint64_t address) {
  if (bases_[segment].load(std::memory_order_relaxed) == address) return {};
  ZBCCL_RETURN_IF_ERROR(table_.write(segment, address));
  bases_[segment].store(address, std::memory_order_release);
  return {};
}

}  // namespace zbccl::cuda
