// A TCP connection for plain blocking use in which every call has a deadline. Owned by one thread
// at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <thread>

#include "base/clock.h"
#include "base/fd.h"
#include "base/status.h"

namespace zbccl::bootstrap {

inline Deadline earlier(Deadline a, Deadline b) { return a.at() < b.at() ? a : b; }

class TcpSocket {
 public:
  TcpSocket() = default;

  // One attempt on every address that `host` (a name or numeric) stands for. kNetwork if none
  // answers.
  static Result<TcpSocket> connect(const std::string& host, uint16_t port, Deadline deadline);

  // A connected stream socket that is there already; messages call its other end `peer`.
  static Result<TcpSocket> adopt(UniqueFd fd, std::string peer);

  bool valid() const { return fd_.valid(); }
  void close() { fd_.reset(); }

  // The whole of it or an error: kTimeout at the deadline, kNetwork if the peer is gone. After an
  // error the connection is of no more use, except that a kTimeout or kAborted of wait_readable()
  // harms nothing.
  Status send(std::string_view bytes, Deadline deadline);
  Status receive(char* bytes, size_t count, Deadline deadline);
  // `text` becomes the next `count` bytes, and takes memory only as they arrive: the count is what
  // the peer says.
  Status receive(std::string& text, size_t count, Deadline deadline);
  // kAborted if `interrupt` (-1: none) can be read from first.
  Status wait_readable(Deadline deadline, int interrupt = -1);

 private:
  TcpSocket(UniqueFd fd, std::string peer) : fd_(std::move(fd)), peer_(std::move(peer)) {}
  Status wait(short events, Deadline deadline);
  Status lost(int errno_value) const;

  UniqueFd fd_;
  std::string peer_;
};

// Calls `attempt(deadline)` until it succeeds, fails with anything but kNetwork or kTimeout, or the
// deadline passes; then kTimeout, with the last failure in its text.
template <typename Attempt>
auto retry_until(Deadline deadline, std::string_view what, Attempt attempt)
    -> decltype(attempt(deadline)) {
  // One attempt does not use up the whole deadline: a listener that never answers may be replaced.
  constexpr Milliseconds kAttempt(10'000);
  Milliseconds pause(5);
  while (true) {
    auto result = attempt(earlier(deadline, Deadline::after(kAttempt)));
    if (result.ok()) return result;
    const Code code = result.status().code();
    if (code != Code::kNetwork && code != Code::kTimeout) return result;
    if (deadline.left() <= pause) {
      return error(Code::kTimeout, "{} before the deadline; last failure: {}", what,
                   result.status().message());
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, Milliseconds(200));
  }
}

}  // namespace zbccl::bootstrap
