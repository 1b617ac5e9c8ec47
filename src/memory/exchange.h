// The process's service thread: hands segments to peers that prove themselves, and watches the
// peers' lives. It runs while a communicator exists. Any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "base/fd.h"
#include "base/status.h"
#include "memory/exchange_protocol.h"
#include "memory/peer_process.h"
#include "memory/process_info.h"

namespace zbccl::memory {

class Exchange {
 public:
  // The running service of this process, started by the first who asks and stopped with the last
  // owner.
  static Result<std::shared_ptr<Exchange>> acquire();
  ~Exchange();

  const ProcessInfo& info() const { return info_; }
  // The peer process, connected by the first who asks; its death is reported to the observers.
  Result<std::shared_ptr<PeerProcess>> peer(const ProcessInfo& info, Deadline deadline);

  // Called on the service thread with the nonce of a peer process that has died. remove_observer()
  // waits for a running call.
  using Observer = std::function<void(uint64_t nonce)>;
  uint64_t add_observer(Observer observer);
  void remove_observer(uint64_t id);

  uint64_t strangers_dropped() const { return strangers_.load(std::memory_order_relaxed); }

 private:
  struct Client {
    UniqueFd socket;
    enum class State { kHello, kProof, kServing } state = State::kHello;
    bootstrap::Nonce client_nonce{};
    bootstrap::Nonce server_nonce{};
    Deadline deadline = Deadline::never();
    uint64_t owner = 0;  // whose device memory it has shown; 0: none
  };

  Exchange() = default;
  Status start();
  void run();
  void accept_clients();
  Status serve(Client& client);
  Status answer_hello(Client& client);
  Status answer_proof(Client& client);
  Status answer_request(Client& client);
  static void answer_device(Client& client, const ExchangeRequest& request, UniqueFd fd,
                            ExchangeReply* reply);
  void drop_late_strangers();
  void report_death(int fd);
  int next_wait() const;
  void forget(int fd);
  static void detach(const Client& client);

  ProcessInfo info_;
  uint64_t probe_ = 0;  // what a peer reads to find out whether it may
  UniqueFd listener_;
  UniqueFd epoll_;
  UniqueFd wake_;
  std::thread thread_;
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> strangers_{0};
  std::map<int, Client> clients_;  // service thread only

  std::mutex peers_mutex_;
  std::map<uint64_t, std::weak_ptr<PeerProcess>> peers_;
  std::map<int, std::weak_ptr<PeerProcess>> lives_;

  std::mutex observers_mutex_;
  std::map<uint64_t, Observer> observers_;
  uint64_t next_observer_ = 1;
};

}  // namespace zbccl::memory
