#include "memory/exchange.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "base/fork_guard.h"
#include "base/log.h"
#include "base/thread.h"
#include "memory/pool.h"
#include "memory/unix_socket.h"

namespace zbccl::memory {
namespace {

constexpr auto kProofTime = Milliseconds(5000);  // what a stranger gets to prove itself
constexpr size_t kMaxStrangers = 128;            // at once

Status watch(int epoll, int fd, uint32_t events = EPOLLIN) {
  epoll_event event = {};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) return system_error("epoll_ctl", errno);
  return {};
}

}  // namespace

Result<std::shared_ptr<Exchange>> Exchange::acquire() {
  struct Slot {
    std::mutex mutex;
    std::weak_ptr<Exchange> exchange;
    uint32_t generation = fork_generation();
  };
  static std::atomic<Slot*> slot{new Slot};
  Slot* current = slot.load();
  if (current->generation != fork_generation()) {
    // In a forked child the parent's thread does not exist, and its mutex may be held for ever.
    auto* fresh = new Slot;
    if (slot.compare_exchange_strong(current, fresh)) current = fresh;
  }
  const std::lock_guard lock(current->mutex);
  if (auto running = current->exchange.lock()) return running;
  auto exchange = std::shared_ptr<Exchange>(new Exchange);
  ZBCCL_RETURN_IF_ERROR(exchange->start());
  current->exchange = exchange;
  return exchange;
}

Status Exchange::start() {
  ZBCCL_ASSIGN_OR_RETURN(info_, make_process_info());
  if (getrandom(&probe_, sizeof probe_, 0) != sizeof probe_)
    return system_error("getrandom", errno);
  ZBCCL_ASSIGN_OR_RETURN(listener_, listen_unix(socket_name(info_.nonce), 4096));
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_.valid() || !wake_.valid()) return system_error("cannot create an epoll set", errno);
  ZBCCL_RETURN_IF_ERROR(watch(epoll_.get(), listener_.get()));
  ZBCCL_RETURN_IF_ERROR(watch(epoll_.get(), wake_.get()));
  thread_ = start_thread("zbccl-service", [this] { run(); });
  return {};
}

Exchange::~Exchange() {
  if (!thread_.joinable()) return;
  stopping_ = true;
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof one);
  thread_.join();
  for (const auto& [fd, client] : clients_) detach(client);
}

Result<std::shared_ptr<PeerProcess>> Exchange::peer(const ProcessInfo& info, Deadline deadline) {
  {
    const std::lock_guard lock(peers_mutex_);
    if (auto known = peers_[info.nonce].lock()) return known;
  }
  // Connected without the lock: two processes that connect to each other need each other's service
  // threads.
  std::shared_ptr<PeerProcess> process;
  if (info.nonce == info_.nonce) {
    process = PeerProcess::self(info_);
  } else {
    ZBCCL_ASSIGN_OR_RETURN(process, PeerProcess::connect(info, deadline, info_.nonce));
  }
  const std::lock_guard lock(peers_mutex_);
  if (auto known = peers_[info.nonce].lock()) return known;  // another thread was faster
  if (!process->is_self()) {
    lives_[process->life_fd()] = process;
    // Without a pidfd it is the connection, whose hang-up is asked for and nothing else.
    ZBCCL_RETURN_IF_ERROR(
        watch(epoll_.get(), process->life_fd(), process->has_pidfd() ? EPOLLIN : EPOLLRDHUP));
  }
  peers_[info.nonce] = process;
  return process;
}

uint64_t Exchange::add_observer(Observer observer) {
  const std::lock_guard lock(observers_mutex_);
  observers_[next_observer_] = std::move(observer);
  return next_observer_++;
}

void Exchange::remove_observer(uint64_t id) {
  const std::lock_guard lock(observers_mutex_);
  observers_.erase(id);
}

void Exchange::run() {
  std::array<epoll_event, 64> events;
  while (!stopping_) {
    const int count = epoll_wait(epoll_.get(), events.data(), events.size(), next_wait());
    for (int i = 0; i < count; ++i) {
      const int fd = events[static_cast<size_t>(i)].data.fd;
      if (fd == listener_.get()) {
        accept_clients();
      } else if (const auto it = clients_.find(fd); it != clients_.end()) {
        const bool stranger = it->second.state != Client::State::kServing;
        if (const Status status = serve(it->second); !status.ok()) {
          if (stranger) {
            ++strangers_;
            log::info(log::Subsys::kNet, "dropped a stranger on the local socket: {}",
                      status.message());
          }
          forget(fd);
        }
      } else if (fd != wake_.get()) {
        report_death(fd);
      }
    }
    drop_late_strangers();
  }
}

void Exchange::forget(int fd) {
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  const auto it = clients_.find(fd);
  detach(it->second);
  clients_.erase(it);
}

void Exchange::detach(const Client& client) {
  if (client.owner == 0) return;
  if (DeviceImports* imports = device_imports()) imports->detach(client.owner);
}

int Exchange::next_wait() const {
  for (const auto& [fd, client] : clients_) {
    if (client.state != Client::State::kServing) return 100;
  }
  return -1;
}

void Exchange::drop_late_strangers() {
  std::vector<int> late;
  for (const auto& [fd, client] : clients_) {
    if (client.state != Client::State::kServing && client.deadline.passed()) late.push_back(fd);
  }
  for (const int fd : late) {
    ++strangers_;
    forget(fd);
  }
}

void Exchange::accept_clients() {
  for (;;) {
    UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      // Out of descriptors: the callers stay queued, and looking again at once would only burn a
      // core.
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        std::this_thread::sleep_for(Milliseconds(10));
      }
      return;
    }
    const auto strangers =
        static_cast<size_t>(std::count_if(clients_.begin(), clients_.end(), [](const auto& item) {
          return item.second.state != Client::State::kServing;
        }));
    if (strangers >= kMaxStrangers) {
      ++strangers_;
      continue;
    }
    const int fd = socket.get();
    Client client;
    client.socket = std::move(socket);
    client.deadline = Deadline::after(kProofTime);
    if (watch(epoll_.get(), fd).ok()) clients_.emplace(fd, std::move(client));
  }
}

Status Exchange::serve(Client& client) {
  switch (client.state) {
    case Client::State::kHello: return answer_hello(client);
    case Client::State::kProof: return answer_proof(client);
    case Client::State::kServing: return answer_request(client);
  }
  return error(Code::kInternal, "unknown state of a client");
}

Status Exchange::answer_hello(Client& client) {
  ExchangeHello hello;
  ZBCCL_RETURN_IF_ERROR(receive_message(client.socket.get(), as_buffer(hello), nullptr,
                                        Deadline::after(Milliseconds(0))));
  if (hello.magic != kExchangeMagic) return error(Code::kNetwork, "wrong magic");
  ExchangeChallenge challenge;
  ZBCCL_ASSIGN_OR_RETURN(challenge.nonce, bootstrap::make_nonce());
  client.client_nonce = hello.nonce;
  client.server_nonce = challenge.nonce;
  ZBCCL_ASSIGN_OR_RETURN(
      challenge.proof,
      bootstrap::make_proof(info_.secret, bootstrap::Role::kServer, hello.nonce, challenge.nonce));
  client.state = Client::State::kProof;
  return send_message(client.socket.get(), as_message(challenge));
}

Status Exchange::answer_proof(Client& client) {
  ExchangeProof proof;
  ZBCCL_RETURN_IF_ERROR(receive_message(client.socket.get(), as_buffer(proof), nullptr,
                                        Deadline::after(Milliseconds(0))));
  ZBCCL_ASSIGN_OR_RETURN(const bootstrap::Proof expected,
                         bootstrap::make_proof(info_.secret, bootstrap::Role::kClient,
                                               client.client_nonce, client.server_nonce));
  if (!bootstrap::proofs_equal(expected, proof.proof)) return error(Code::kNetwork, "wrong secret");
  client.state = Client::State::kServing;
  ExchangeWelcome welcome;
  welcome.probe_address = reinterpret_cast<uint64_t>(&probe_);
  welcome.probe_value = probe_;
  return send_message(client.socket.get(), as_message(welcome));
}

Status Exchange::answer_request(Client& client) {
  ExchangeRequest request;
  UniqueFd given;
  ZBCCL_RETURN_IF_ERROR(receive_message(client.socket.get(), as_buffer(request), &given,
                                        Deadline::after(Milliseconds(0))));
  ExchangeReply reply;
  reply.id = request.id;
  int fd = -1;
  switch (static_cast<ExchangeKind>(request.kind)) {
    case ExchangeKind::kHostSegment:
      if (const auto handle = Pool::process().segment_handle(request.segment); handle.ok()) {
        reply.reserve = handle->second;
        fd = handle->first;
      } else {
        reply.code = static_cast<int32_t>(Code::kRevoked);
      }
      break;
    case ExchangeKind::kDeviceChunk:
    case ExchangeKind::kDropDevice:
    case ExchangeKind::kProbePlace:
    case ExchangeKind::kProbeCheck: answer_device(client, request, std::move(given), &reply); break;
    default: return error(Code::kNetwork, "unknown request {}", request.kind);
  }
  return send_message(client.socket.get(), as_message(reply), fd);
}

void Exchange::answer_device(Client& client, const ExchangeRequest& request, UniqueFd fd,
                             ExchangeReply* reply) {
  const auto kind = static_cast<ExchangeKind>(request.kind);
  ImportAnswer answer;
  DeviceImports* const imports = device_imports();
  if (imports == nullptr) {
    answer.later = kind != ExchangeKind::kDropDevice;
    if (answer.later) answer.status = error(Code::kTimeout, "it uses no GPU yet");
  } else if (request.owner == 0 || (client.owner != 0 && client.owner != request.owner)) {
    answer.status = error(Code::kNetwork, "a connection speaks for one process");
  } else {
    if (client.owner == 0) imports->attach(request.owner);
    client.owner = request.owner;
    if (kind == ExchangeKind::kDeviceChunk) {
      answer = imports->import_chunk(request.owner, request.chunk, std::move(fd));
    } else if (kind == ExchangeKind::kDropDevice) {
      answer = imports->drop_segment(request.owner, request.chunk);
    } else if (kind == ExchangeKind::kProbePlace) {
      answer = imports->probe_place(request.chunk.device, &reply->probe);
    } else {
      answer = imports->probe_check(request.chunk.device, request.probe);
    }
  }
  reply->later = answer.later ? 1 : 0;
  reply->code = static_cast<int32_t>(answer.status.code());
  const std::string& text = answer.status.message();
  std::memcpy(reply->text, text.data(), std::min(text.size(), sizeof reply->text - 1));
}

void Exchange::report_death(int fd) {
  uint64_t nonce = 0;
  {
    const std::lock_guard lock(peers_mutex_);
    const auto it = lives_.find(fd);
    // Its owner is about to close the descriptor, which ends the watch; another thread may have
    // the number by then.
    if (it == lives_.end()) return std::this_thread::yield();
    if (const auto process = it->second.lock()) {
      nonce = process->nonce();
      epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
      log::info(log::Subsys::kFault, "process {} has ended", process->pid());
    }
    lives_.erase(it);
  }
  if (nonce == 0) return;
  const std::lock_guard lock(observers_mutex_);
  for (const auto& [id, observer] : observers_) observer(nonce);
}

}  // namespace zbccl::memory
