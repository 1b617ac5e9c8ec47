// A server that says to each client what a test wants.
#pragma once

#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "bootstrap_support.h"

namespace zbccl::bootstrap::test {

// A listener that hands each connection to `talk` until it is destroyed.
class FakeServer {
 public:
  explicit FakeServer(std::function<void(int fd)> talk) : talk_(std::move(talk)) {
    listener_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(::listen(listener_.get(), 16), 0);
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~FakeServer() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    {
      const std::lock_guard lock(mutex_);
      if (current_ >= 0) ::shutdown(current_, SHUT_RDWR);
    }
    thread_.join();
  }
  uint16_t port() const { return port_; }

 private:
  void run() {
    while (true) {
      const UniqueFd fd(::accept(listener_.get(), nullptr, nullptr));
      if (!fd.valid()) return;
      set_current(fd.get());
      talk_(fd.get());
      set_current(-1);
    }
  }
  void set_current(int fd) {
    const std::lock_guard lock(mutex_);
    current_ = fd;
  }

  const std::function<void(int)> talk_;
  UniqueFd listener_;
  uint16_t port_ = 0;
  std::mutex mutex_;
  int current_ = -1;
  std::thread thread_;
};

}  // namespace zbccl::bootstrap::test
