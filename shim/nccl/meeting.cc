#include "meeting.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "error.h"

namespace zbccl::nccl {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

ncclResult_t system_error(const char* what) {
  return fail(ncclSystemError, "{}: {}", what, std::strerror(errno));
}

// In the abstract namespace, where nothing is left behind.
socklen_t address_of(const Identity& place, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  const std::string name = "zbccl-nccl-" + place.text();
  std::memcpy(address->sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

bool same_user(int fd) {
  ucred peer = {};
  socklen_t size = sizeof peer;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

// How long poll() may wait.
int left_until(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

bool wait_for(int fd, short events, Clock::time_point deadline) {
  pollfd watched = {fd, events, 0};
  int ready = 0;
  do {
    ready = poll(&watched, 1, left_until(deadline));
  } while (ready < 0 && errno == EINTR);
  return ready > 0;
}

bool send_all(int fd, const void* data, size_t size) {
  return send(fd, data, size, MSG_NOSIGNAL) == static_cast<ssize_t>(size);
}

bool receive_all(int fd, void* data, size_t size, Clock::time_point deadline) {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    if (!wait_for(fd, POLLIN, deadline)) return false;
    const ssize_t got = recv(fd, at, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

ncclResult_t serve(const Identity& place, int nranks, Clock::time_point deadline,
                   zbcclUniqueId* id) {
  ZBCCL_NCCL_TRY(result_of(zbcclGetUniqueId(id)));
  const Socket listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (listener.get() < 0) return system_error("a socket for those that are left");
  sockaddr_un address;
  const socklen_t size = address_of(place, &address);
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(listener.get(), nranks) != 0) {
    return system_error("listening for those that are left");
  }
  std::vector<bool> served(static_cast<size_t>(nranks), false);
  for (int missing = nranks - 1; missing > 0;) {
    if (!wait_for(listener.get(), POLLIN, deadline)) {
      const auto absent = std::find(served.begin() + 1, served.end(), false) - served.begin();
      return fail(ncclRemoteError, "rank {} of the {} that are left did not come in time", absent,
                  nranks);
    }
    const Socket guest(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    int32_t rank = 0;
    if (guest.get() < 0 || !same_user(guest.get())) continue;
    // A guest that says nothing must not keep the others waiting.
    const auto soon = std::min(deadline, Clock::now() + std::chrono::seconds(5));
    if (!receive_all(guest.get(), &rank, sizeof rank, soon)) continue;
    if (rank < 1 || rank >= nranks || !send_all(guest.get(), id, sizeof *id)) continue;
    if (served[static_cast<size_t>(rank)]) continue;
    served[static_cast<size_t>(rank)] = true;
    --missing;
  }
  return ncclSuccess;
}

ncclResult_t visit(const Identity& place, int rank, Clock::time_point deadline, zbcclUniqueId* id) {
  sockaddr_un address;
  const socklen_t size = address_of(place, &address);
  do {
    const Socket line(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (line.get() < 0) return system_error("a socket for those that are left");
    const int32_t mine = rank;
    if (connect(line.get(), reinterpret_cast<sockaddr*>(&address), size) == 0 &&
        same_user(line.get()) && send_all(line.get(), &mine, sizeof mine) &&
        receive_all(line.get(), id, sizeof *id, deadline)) {
      return ncclSuccess;
    }
    std::this_thread::sleep_for(milliseconds(2));
  } while (Clock::now() < deadline);
  return fail(ncclRemoteError, "the first of the ranks that are left did not come in time");
}

}  // namespace

ncclResult_t meet(const Identity& place, int rank, int nranks, milliseconds timeout,
                  zbcclUniqueId* id) {
  const Clock::time_point deadline = Clock::now() + timeout;
  return rank == 0 ? serve(place, nranks, deadline, id) : visit(place, rank, deadline, id);
}

}  // namespace zbccl::nccl
