// A store over TCP on Asio: one server, a client in each rank. Authenticated by the secret
// (auth.h), frames versioned and capped in length, a deadline on every connection; strangers are
// dropped and counted and disturb nobody. The server may be asked from any thread; in a process
// that was forked from its own it must not be used.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "bootstrap/store.h"
#include "bootstrap/unique_id.h"

namespace zbccl::bootstrap {

class TcpStoreServer {
 public:
  // Listens on `host` (numeric; "" for every interface) and `port` (0: any) and serves on a thread
  // of its own.
  static Result<std::unique_ptr<TcpStoreServer>> start(const std::string& host, uint16_t port,
                                                       const Secret& secret);
  virtual ~TcpStoreServer() = default;  // stops and joins

  virtual uint16_t port() const = 0;
  virtual uint64_t strangers_dropped() const = 0;
  virtual size_t clients() const = 0;  // authenticated and connected now
  virtual bool abandoned() const = 0;  // had clients, and the last one has left

  // Stops by itself, and gives its thread and its descriptors back, once no client is connected.
  // Does not block.
  virtual void stop_when_idle() = 0;
  // Takes that back; false if it has stopped already.
  virtual bool keep_serving() = 0;
};

// Retries until the server answers or the deadline passes. A wrong secret is kInvalidUsage at once,
// another protocol version kVersionMismatch.
Result<std::shared_ptr<Store>> connect_tcp_store(const UniqueId& id, Deadline deadline);

// The numeric address that other machines reach this one at: ZBCCL_HOST_ADDRESS, or the first
// interface that is up, or 127.0.0.1.
std::string host_address();

}  // namespace zbccl::bootstrap
