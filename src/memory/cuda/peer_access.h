// Whether one GPU loads from and stores to another one's memory: what the driver says, and what a
// probe finds. Any thread.
#pragma once

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "memory/cuda/device_id.h"
#include "memory/cuda/remote_memory.h"
#include "memory/peer_process.h"

namespace zbccl::cuda {

// What can be known before anything is mapped: the environment (ZBCCL_DENY_REACH) and the driver's
// word, if this process sees the other GPU at all.
Result<Reach> may_reach(int local, const DeviceId& remote);

// Writes and reads through the mapping, and has the owner look; once for each RemoteMemory. The
// owner must share its segment 0 with this process, which is waited for. An error means that
// nothing was found out.
Result<Reach> probe_reach(memory::PeerProcess& process, RemoteMemory& remote, Deadline deadline);

}  // namespace zbccl::cuda
