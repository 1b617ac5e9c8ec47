// Datagram-preserving Unix sockets in the abstract namespace: nothing in the file system, gone with
// their process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/fd.h"
#include "base/status.h"

namespace zbccl::memory {

Result<UniqueFd> listen_unix(const std::string& name, int backlog);
Result<UniqueFd> connect_unix(const std::string& name, Deadline deadline);

// Sends one message, with a descriptor if `fd` >= 0. Never raises SIGPIPE.
Status send_message(int socket, std::span<const std::byte> message, int fd = -1);

// Receives one message of exactly `message.size()` bytes; a descriptor that came with it goes to
// *fd (may be nullptr). kNetwork if the peer closed or sent another size, kTimeout at the deadline.
Status receive_message(int socket, std::span<std::byte> message, UniqueFd* fd, Deadline deadline);

// Process id of the other end as this process sees it.
Result<int> peer_pid(int socket);

template <typename T>
std::span<const std::byte> as_message(const T& value) {
  return {reinterpret_cast<const std::byte*>(&value), sizeof value};
}
template <typename T>
std::span<std::byte> as_buffer(T& value) {
  return {reinterpret_cast<std::byte*>(&value), sizeof value};
}

}  // namespace zbccl::memory
