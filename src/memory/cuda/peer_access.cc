#include "memory/cuda/peer_access.h"

#include <sys/random.h>

#include <cerrno>
#include <map>
#include <mutex>
#include <thread>

#include "base/env.h"
#include "base/log.h"
#include "memory/cuda/probe_page.h"

namespace zbccl::cuda {
namespace {

using memory::ProbePlace;

// What a GPU needs to probe others; made once and kept.
struct Prober {
  CUstream stream = nullptr;
  CUevent done = nullptr;
  uint32_t* wrong = nullptr;  // pinned
};

std::mutex probing;  // guards the map and what is in it

Result<Prober> prober_of(const Driver& driver, int local) {
  static std::map<int, Prober> all;
  Prober& prober = all[local];
  if (prober.wrong != nullptr) return prober;
  int least = 0;
  int greatest = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(driver.ctx_get_stream_priority_range(&least, &greatest),
                             "cannot find the priorities of streams");
  ZBCCL_RETURN_IF_CUDA_ERROR(
      driver.stream_create_with_priority(&prober.stream, CU_STREAM_NON_BLOCKING, greatest),
      "cannot create a stream");
  ZBCCL_RETURN_IF_CUDA_ERROR(driver.event_create(&prober.done, CU_EVENT_DISABLE_TIMING),
                             "cannot create an event");
  void* wrong = nullptr;
  ZBCCL_RETURN_IF_CUDA_ERROR(
      driver.mem_host_alloc(&wrong, 2 * sizeof(uint32_t), CU_MEMHOSTALLOC_PORTABLE),
      "cannot allocate pinned memory");
  prober.wrong = static_cast<uint32_t*>(wrong);
  return prober;
}

// Runs the kernel on the GPU that holds the mapping: "" or what it found wrong.
Result<std::string> run_probe(const RemoteMemory& remote, const ProbePlace& place,
                              Deadline deadline) {
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  const DeviceGuard guard(remote.local());
  ZBCCL_RETURN_IF_ERROR(guard.status());
  const RelaxedCapture relaxed(*d);
  const std::lock_guard lock(probing);
  ZBCCL_ASSIGN_OR_RETURN(const Prober prober, prober_of(*d, remote.local()));
  ProbeCall call;
  call.pattern = reinterpret_cast<const uint64_t*>(remote.base(0) + place.pattern);
  call.seed = place.seed;
  call.slot = reinterpret_cast<uint64_t*>(remote.base(0) + place.slot);
  call.token = place.token;
  call.wrong = prober.wrong;
  prober.wrong[0] = prober.wrong[1] = kProbeWords;
  ZBCCL_RETURN_IF_CUDA_ERROR(d->launch_probe(call, prober.stream),
                             format("cannot probe from GPU {}", remote.local()));
  ZBCCL_RETURN_IF_CUDA_ERROR(d->event_record(prober.done, prober.stream), "cannot record an event");
  for (;;) {
    const CUresult result = d->event_query(prober.done);
    if (result == CUDA_SUCCESS) break;
    if (result != CUDA_ERROR_NOT_READY) {
      return cuda_error(result, format("a probe from GPU {} failed", remote.local()));
    }
    if (deadline.passed()) {
      return error(Code::kTimeout, "a probe from GPU {} did not end", remote.local());
    }
    std::this_thread::sleep_for(std::chrono::microseconds(5));
  }
  if (prober.wrong[0] != 0) {
    return format("{} of {} words are read otherwise than its owner wrote them", prober.wrong[0],
                  kProbeWords);
  }
  if (prober.wrong[1] != 0) {
    return format("{} of {} words are read back otherwise than they were written", prober.wrong[1],
                  kProbeWords);
  }
  return std::string();
}

Result<ProbePlace> place_of(memory::PeerProcess& process, const RemoteMemory& remote,
                            Deadline deadline) {
  if (!process.is_self()) return process.probe_place(remote.id().uuid, deadline);
  ZBCCL_ASSIGN_OR_RETURN(const std::optional<int> owner, device_ordinal(remote.id()));
  if (!owner) return error(Code::kInternal, "{} is no GPU of this process", remote.id().text());
  ZBCCL_ASSIGN_OR_RETURN(DevicePool* const pool, DevicePool::of(*owner));
  ZBCCL_ASSIGN_OR_RETURN(ProbePage* const page, ProbePage::of(*pool));
  return page->next_place();
}

Status check_place(memory::PeerProcess& process, const RemoteMemory& remote,
                   const ProbePlace& place, Deadline deadline) {
  if (!process.is_self()) return process.probe_check(remote.id().uuid, place, deadline);
  for (;;) {
    const memory::ImportAnswer answer = Imports::process().probe_check(remote.id().uuid, place);
    if (!answer.later) return answer.status;
    if (deadline.passed()) return answer.status;
  }
}

}  // namespace

Result<Reach> may_reach(int local, const DeviceId& remote) {
  ZBCCL_ASSIGN_OR_RETURN(const DeviceId mine, device_id(local));
  if (mine == remote) return Reach{true, ""};
  if (env::get_string("ZBCCL_DENY_REACH") == "mapped") {
    return Reach{false, "ZBCCL_DENY_REACH denies mapped memory of other GPUs"};
  }
  ZBCCL_ASSIGN_OR_RETURN(const std::optional<int> other, device_ordinal(remote));
  if (!other) return Reach{true, ""};  // not visible here; the probe will tell
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  int can = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(d->device_can_access_peer(&can, local, *other),
                             format("cannot ask whether GPU {} reaches GPU {}", local, *other));
  if (can != 0) return Reach{true, ""};
  return Reach{false, format("the driver allows no peer access from GPU {} to GPU {} ({})", local,
                             *other, remote.text())};
}

Result<Reach> probe_reach(memory::PeerProcess& process, RemoteMemory& remote, Deadline deadline) {
  if (const auto known = remote.reach()) return *known;
  ZBCCL_ASSIGN_OR_RETURN(Reach reach, may_reach(remote.local(), remote.id()));
  if (reach.mapped) {
    ZBCCL_ASSIGN_OR_RETURN(ProbePlace place, place_of(process, remote, deadline));
    if (getrandom(&place.token, sizeof place.token, 0) != sizeof place.token) {
      return system_error("getrandom", errno);
    }
    ZBCCL_RETURN_IF_ERROR(
        Imports::process().await_mapped(remote, std::max(place.pattern, place.slot), deadline));
    ZBCCL_ASSIGN_OR_RETURN(std::string wrong, run_probe(remote, place, deadline));
    if (wrong.empty()) {
      const Status arrived = check_place(process, remote, place, deadline);
      if (arrived.code() == Code::kCuda) {
        wrong = arrived.message();
      } else {
        ZBCCL_RETURN_IF_ERROR(arrived);
      }
    }
    if (!wrong.empty()) {
      reach = {false, format("GPU {} does not reach {} though the driver says so: {}",
                             remote.local(), remote.id().text(), wrong)};
      log::warn(log::Subsys::kMem, "{}", reach.why);
    }
  }
  remote.set_reach(reach);
  return reach;
}

}  // namespace zbccl::cuda
