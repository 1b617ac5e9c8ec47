#include "bootstrap/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "bootstrap/unique_id.h"

namespace zbccl::bootstrap {
namespace {

void set_option(int fd, int level, int option, int value) {
  // Best effort: none of these changes what is correct.
  (void)::setsockopt(fd, level, option, &value, sizeof(value));
}

// Small requests leave at once, and a machine that vanished is noticed within a minute.
void tune(int fd) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

Status poll_one(int fd, short events, Deadline deadline, const std::string& peer,
                int interrupt = -1) {
  while (true) {
    std::array<pollfd, 2> entries{{{.fd = fd, .events = events, .revents = 0},
                                   {.fd = interrupt, .events = POLLIN, .revents = 0}}};
    const int ready =
        ::poll(entries.data(), entries.size(), static_cast<int>(deadline.left().count()));
    if (ready > 0 && entries[0].revents != 0) return {};
    if (ready > 0) return error(Code::kAborted, "the wait for {} was interrupted", peer);
    if (ready < 0 && errno != EINTR) return system_error("poll", errno);
    if (deadline.passed()) return error(Code::kTimeout, "{} did not answer in time", peer);
  }
}

Result<UniqueFd> connect_address(const addrinfo& address, Deadline deadline,
                                 const std::string& peer) {
  UniqueFd fd(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return system_error("socket", errno);
  if (::connect(fd.get(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS && errno != EINTR) {
      return error(Code::kNetwork, "connect to {}: {}", peer, std::strerror(errno));
    }
    ZBCCL_RETURN_IF_ERROR(poll_one(fd.get(), POLLOUT, deadline, peer));
    int failure = 0;
    socklen_t length = sizeof(failure);
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &failure, &length) != 0) failure = errno;
    if (failure != 0) {
      return error(Code::kNetwork, "connect to {}: {}", peer, std::strerror(failure));
    }
  }
  tune(fd.get());
  return fd;
}

// A connection to a port of this machine that nobody listens on can meet itself when the kernel
// picks the very same port for its own end.
bool is_self_connection(int fd) {
  sockaddr_storage own{};
  sockaddr_storage peer{};
  socklen_t own_length = sizeof(own);
  socklen_t peer_length = sizeof(peer);
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_length) != 0) return false;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_length) != 0) return false;
  return own_length == peer_length && std::memcmp(&own, &peer, own_length) == 0;
}

}  // namespace

Result<TcpSocket> TcpSocket::connect(const std::string& host, uint16_t port, Deadline deadline) {
  const std::string peer = endpoint_text(host, port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  if (code != 0) {
    return error(Code::kNetwork, "host \"{}\" has no address: {}", host, ::gai_strerror(code));
  }
  Status last = error(Code::kNetwork, "host \"{}\" has no address", host);
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    auto fd = connect_address(*each, deadline, peer);
    if (fd.ok() && is_self_connection(fd->get())) {
      last = error(Code::kNetwork, "connect to {}: nobody listens there", peer);
      continue;
    }
    if (fd.ok()) return TcpSocket(std::move(*fd), peer);
    last = fd.status();
  }
  return last;
}

Result<TcpSocket> TcpSocket::adopt(UniqueFd fd, std::string peer) {
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return system_error("fcntl", errno);
  }
  return TcpSocket(std::move(fd), std::move(peer));
}

Status TcpSocket::wait(short events, Deadline deadline) {
  return poll_one(fd_.get(), events, deadline, peer_);
}

Status TcpSocket::wait_readable(Deadline deadline, int interrupt) {
  if (!valid()) return lost(ENOTCONN);
  return poll_one(fd_.get(), POLLIN, deadline, peer_, interrupt);
}

Status TcpSocket::lost(int errno_value) const {
  return error(Code::kNetwork, "lost the connection to {}: {}", peer_,
               errno_value == 0 ? "it closed it" : std::strerror(errno_value));
}

Status TcpSocket::send(std::string_view bytes, Deadline deadline) {
  if (!valid()) return lost(ENOTCONN);
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      ZBCCL_RETURN_IF_ERROR(wait(POLLOUT, deadline));
    } else if (errno != EINTR) {
      return lost(errno);
    }
  }
  return {};
}

Status TcpSocket::receive(char* bytes, size_t count, Deadline deadline) {
  if (!valid()) return lost(ENOTCONN);
  while (count > 0) {
    const ssize_t got = ::recv(fd_.get(), bytes, count, 0);
    if (got > 0) {
      bytes += got;
      count -= static_cast<size_t>(got);
    } else if (got == 0) {
      return lost(0);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      ZBCCL_RETURN_IF_ERROR(wait(POLLIN, deadline));
    } else if (errno != EINTR) {
      return lost(errno);
    }
  }
  return {};
}

Status TcpSocket::receive(std::string& text, size_t count, Deadline deadline) {
  constexpr size_t kFirst = size_t{64} << 10;
  text.clear();
  while (text.size() < count) {
    const size_t have = text.size();
    text.resize(std::min(count, std::max(kFirst, 2 * have)));
    ZBCCL_RETURN_IF_ERROR(receive(text.data() + have, text.size() - have, deadline));
  }
  return {};
}

}  // namespace zbccl::bootstrap
