// What the tests of src/bootstrap share: raw sockets, the client's half of the handshake by hand,
// ranks as threads, and the environment.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "bootstrap/auth.h"
#include "bootstrap/frame.h"
#include "bootstrap/handshake.h"
#include "bootstrap/rendezvous.h"
#include "bootstrap/store.h"
#include "bootstrap/tcp_store.h"

namespace zbccl::bootstrap::test {

// Long enough for a busy machine; nothing that is to succeed waits for it.
inline Deadline soon() { return Deadline::after(Milliseconds(60'000)); }
inline Deadline in(int ms) { return Deadline::after(Milliseconds(ms)); }
inline Milliseconds since(Clock::time_point start) {
  return std::chrono::duration_cast<Milliseconds>(Clock::now() - start);
}

inline Secret some_secret(uint8_t seed = 1) {
  Secret secret{};
  for (size_t i = 0; i < secret.size(); ++i) secret[i] = static_cast<uint8_t>(seed + 7 * i);
  return secret;
}

struct TestServer {
  std::unique_ptr<TcpStoreServer> server;
  UniqueId id;
};

inline TestServer serve(const Secret& secret = some_secret()) {
  TestServer made;
  auto server = TcpStoreServer::start("127.0.0.1", 0, secret);
  EXPECT_TRUE(server.ok()) << server.status().to_string();
  made.server = std::move(*server);
  made.id = {"127.0.0.1", made.server->port(), secret};
  return made;
}

// Blocking socket on the loopback interface.
inline UniqueFd raw_connect(uint16_t port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) fd.reset();
  return fd;
}

inline bool raw_send(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

// Fewer bytes than asked for if the peer closes or is silent for `ms`.
inline std::string raw_receive(int fd, size_t count, int ms = 30'000) {
  std::string bytes;
  while (bytes.size() < count) {
    pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
    if (::poll(&entry, 1, ms) <= 0) break;
    char buffer[4096];
    const ssize_t got = ::recv(fd, buffer, std::min(sizeof(buffer), count - bytes.size()), 0);
    if (got <= 0) break;
    bytes.append(buffer, static_cast<size_t>(got));
  }
  return bytes;
}

// True once the peer has closed; what it still sent is discarded.
inline bool closed_by_peer(int fd, int ms = 30'000) {
  const auto start = Clock::now();
  while (since(start).count() < ms) {
    pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
    if (::poll(&entry, 1, ms) <= 0) continue;
    char buffer[4096];
    if (::recv(fd, buffer, sizeof(buffer), 0) <= 0) return true;
  }
  return false;
}

// A handshake by hand, and all that it sent.
struct Handshake {
  UniqueFd fd;
  std::string opening;
  std::string proof;
  std::string verdict;
  bool accepted() const {
    return !verdict.empty() && static_cast<Verdict>(verdict[0]) == Verdict::kAccepted;
  }
};

inline Handshake shake_hands(const UniqueId& id, const Secret& secret) {
  Handshake made;
  made.fd = raw_connect(id.port);
  Hello hello;
  hello.nonce = *make_nonce();
  hello.secret_id = *secret_id(secret);
  made.opening = preamble() + encode_hello(hello);
  raw_send(made.fd.get(), made.opening);
  const std::string answer = raw_receive(made.fd.get(), kPreambleBytes + kHelloBytes);
  if (answer.size() != kPreambleBytes + kHelloBytes) return made;
  const Nonce server = parse_hello(std::string_view(answer).substr(kPreambleBytes)).nonce;
  const Proof proof = *make_proof(secret, Role::kClient, hello.nonce, server);
  made.proof.assign(reinterpret_cast<const char*>(proof.data()), proof.size());
  raw_send(made.fd.get(), made.proof);
  made.verdict = raw_receive(made.fd.get(), kVerdictBytes);
  return made;
}

template <typename Condition>
bool eventually(Condition condition, int ms = 30'000) {
  const auto start = Clock::now();
  while (!condition()) {
    if (since(start).count() > ms) return false;
    std::this_thread::sleep_for(Milliseconds(5));
  }
  return true;
}

// Runs body(0) to body(count - 1), each on a thread of its own.
inline void on_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

using Joined = Result<std::vector<std::string>>;

// Sets variables while it lives; a value of nothing unsets.
class Environment {
 public:
  explicit Environment(std::map<std::string, std::optional<std::string>> variables) {
    for (const auto& [name, value] : variables) {
      const char* old = std::getenv(name.c_str());
      before_[name] = old == nullptr ? std::nullopt : std::optional<std::string>(old);
    }
    apply(variables);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  ~Environment() { apply(before_); }

 private:
  static void apply(const std::map<std::string, std::optional<std::string>>& variables) {
    for (const auto& [name, value] : variables) {
      if (value) {
        ::setenv(name.c_str(), value->c_str(), 1);
      } else {
        ::unsetenv(name.c_str());
      }
    }
  }
  std::map<std::string, std::optional<std::string>> before_;
};

}  // namespace zbccl::bootstrap::test
