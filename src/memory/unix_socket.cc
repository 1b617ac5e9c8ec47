#include "memory/unix_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

namespace zbccl::memory {
namespace {

socklen_t fill_address(const std::string& name, sockaddr_un* address) {
  std::memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  std::memcpy(address->sun_path, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
}

Result<UniqueFd> make_socket(int flags) {
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0));
  if (!fd.valid()) return system_error("cannot create a Unix socket", errno);
  return fd;
}

}  // namespace

Result<UniqueFd> listen_unix(const std::string& name, int backlog) {
  ZBCCL_ASSIGN_OR_RETURN(UniqueFd fd, make_socket(SOCK_NONBLOCK));
  sockaddr_un address;
  const socklen_t length = fill_address(name, &address);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      listen(fd.get(), backlog) != 0) {
    return system_error("cannot listen on a Unix socket", errno);
  }
  return fd;
}

Result<UniqueFd> connect_unix(const std::string& name, Deadline deadline) {
  ZBCCL_ASSIGN_OR_RETURN(UniqueFd fd, make_socket(0));
  const auto left = deadline.left().count();
  const timeval limit = {left / 1000, left % 1000 * 1000};
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  sockaddr_un address;
  const socklen_t length = fill_address(name, &address);
  int result = 0;
  do {
    result = connect(fd.get(), reinterpret_cast<sockaddr*>(&address), length);
  } while (result != 0 && errno == EINTR);
  if (result != 0) {
    if (errno == EAGAIN)
      return error(Code::kTimeout, "a local process did not accept a connection");
    return Status(Code::kNetwork, format("cannot connect to a local process: {}", strerror(errno)));
  }
  return fd;
}

Status send_message(int socket, std::span<const std::byte> message, int fd) {
  iovec data = {const_cast<std::byte*>(message.data()), message.size()};
  msghdr header = {};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr* item = CMSG_FIRSTHDR(&header);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(item), &fd, sizeof fd);
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(socket, &header, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent != static_cast<ssize_t>(message.size())) {
    return Status(Code::kNetwork, format("cannot send to a local process: {}", strerror(errno)));
  }
  return {};
}

Status receive_message(int socket, std::span<std::byte> message, UniqueFd* fd, Deadline deadline) {
  for (;;) {
    pollfd item = {socket, POLLIN, 0};
    const int ready = poll(&item, 1, static_cast<int>(deadline.left().count()));
    if (ready == 0) return error(Code::kTimeout, "a local process did not answer");
    if (ready > 0) break;
    if (errno != EINTR) return system_error("poll", errno);
  }
  iovec data = {message.data(), message.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 4)] = {};
  msghdr header = {};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  ssize_t received = 0;
  do {
    received = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  // Own every descriptor that came, wanted or not, so that none leaks.
  for (cmsghdr* item = received >= 0 ? CMSG_FIRSTHDR(&header) : nullptr; item != nullptr;
       item = CMSG_NXTHDR(&header, item)) {
    if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int value = -1;
      std::memcpy(&value, CMSG_DATA(item) + i * sizeof(int), sizeof value);
      UniqueFd owned(value);
      if (fd != nullptr && !fd->valid()) *fd = std::move(owned);
    }
  }
  if (received < 0) {
    return Status(Code::kNetwork, format("a local connection broke: {}", strerror(errno)));
  }
  if (received != static_cast<ssize_t>(message.size()) || (header.msg_flags & MSG_TRUNC) != 0) {
    return received == 0 ? error(Code::kNetwork, "a local process closed its connection")
                         : error(Code::kNetwork, "a local process sent {} bytes, expected {}",
                                 received, message.size());
  }
  return {};
}

Result<int> peer_pid(int socket) {
  ucred credentials = {};
  socklen_t size = sizeof credentials;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return system_error("SO_PEERCRED", errno);
  }
  return static_cast<int>(credentials.pid);
}

}  // namespace zbccl::memory
