// Who a process is, in words that other processes understand. Value; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "bootstrap/unique_id.h"

namespace zbccl::memory {

// Travels in a communicator's join, so it is as private as the store that carries it.
struct ProcessInfo {
  std::array<uint64_t, 2> host{};  // equal on two processes: they may be on one machine
  uint64_t nonce = 0;              // tells processes apart, also when a pid is reused
  int32_t pid = 0;                 // in the process's own namespace; for messages only
  uint32_t reserved = 0;
  bootstrap::Secret secret{};  // what a peer proves to this process's service thread
};

// A random one for the calling process. The host is ZBCCL_HOST_ID, else the kernel's boot id.
Result<ProcessInfo> make_process_info();

// Name of the service socket in the abstract namespace, the leading zero byte included.
std::string socket_name(uint64_t nonce);

}  // namespace zbccl::memory
