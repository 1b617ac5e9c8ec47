#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "base/log.h"
#include "bootstrap/auth.h"
#include "bootstrap/tcp_store.h"
#include "bootstrap/tcp_store_session.h"

namespace zbccl::bootstrap {
namespace {

using asio::ip::tcp;

// How many connections may be in their handshake at once; the oldest makes room. A flood of
// strangers thus takes no more descriptors than this.
constexpr size_t kMaxHandshakes = 128;
// After an accept that failed, for lack of descriptors for example.
constexpr Milliseconds kAcceptPause(20);
// For ranks that have not come yet when the others have failed and left.
constexpr Milliseconds kLinger(2'000);

// What is known of a server, also when it has stopped.
struct Figures {
  std::atomic<uint64_t> strangers{0};
  std::atomic<size_t> clients{0};
  std::atomic<bool> had_clients{false};
};

// Owned by its thread, and gone with that.
class Server final : public SessionHost, public std::enable_shared_from_this<Server> {
 public:
  Server(const Secret& secret, std::shared_ptr<Figures> figures)
      : host_secret_(secret),
        figures_(std::move(figures)),
        acceptor_(io_),
        accept_pause_(io_),
        linger_(io_) {}

  Status listen(const std::string& host, uint16_t port);
  uint16_t port() const { return port_; }
  void serve();
  void stop();

  void stop_when_idle() {
    const std::lock_guard lock(mutex_);
    stop_when_idle_ = true;
    lingered_ = false;
    asio::post(io_, [this] { stop_if_idle(); });
  }

  bool keep_serving() {
    const std::lock_guard lock(mutex_);
    stop_when_idle_ = false;
    return !stopped_;
  }

 private:
  Status bind_to(const tcp::endpoint& endpoint);
  void run();
  void accept();
  void on_accept(std::error_code failure, tcp::socket socket);
  void stop_if_idle();
  void count_stranger(std::string_view peer, std::string_view why);

  // SessionHost, called on the server's thread.
  const Secret& secret() const override { return host_secret_; }
  StoreTable& table() override { return table_; }
  Meetings& meetings() override { return meetings_; }
  void on_authenticated(Session& session) override;
  void on_closed(Session& session, bool authenticated, std::string_view why) override;

  const Secret host_secret_;
  const std::shared_ptr<Figures> figures_;
  uint16_t port_ = 0;
  std::mutex mutex_;  // guards what follows
  bool stop_when_idle_ = false;
  bool stopped_ = false;
  bool lingered_ = false;
  std::thread thread_;

  // Declared before everything that belongs to it, so that it goes last.
  asio::io_context io_{1};
  tcp::acceptor acceptor_;
  asio::steady_timer accept_pause_;
  asio::steady_timer linger_;
  StoreTable table_;
  Meetings meetings_{process_token()};
  SessionList handshakes_;  // oldest first
  SessionList clients_;
};

Status Server::bind_to(const tcp::endpoint& endpoint) {
  const int fd = ::socket(endpoint.protocol().family(), SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return system_error("socket", errno);
  std::error_code failure;
  acceptor_.assign(endpoint.protocol(), fd, failure);
  if (failure) {
    ::close(fd);
    return error(Code::kSystem, "listening socket: {}", failure.message());
  }
  // A run that has just ended leaves connections in TIME_WAIT on a fixed port.
  acceptor_.set_option(tcp::acceptor::reuse_address(true), failure);
  if (endpoint.address().is_v6() && endpoint.address().is_unspecified()) {
    acceptor_.set_option(asio::ip::v6_only(false), failure);
  }
  acceptor_.bind(endpoint, failure);
  if (!failure) acceptor_.listen(asio::socket_base::max_listen_connections, failure);
  if (failure) {
    std::error_code ignored;
    acceptor_.close(ignored);
    return error(Code::kNetwork, "cannot listen on {}: {}",
                 endpoint_text(endpoint.address().to_string(), endpoint.port()), failure.message());
  }
  port_ = acceptor_.local_endpoint(failure).port();
  return {};
}

Status Server::listen(const std::string& host, uint16_t port) {
  if (host.empty()) {
    // One socket for both families; machines without IPv6 get the older one.
    if (bind_to(tcp::endpoint(tcp::v6(), port)).ok()) return {};
    return bind_to(tcp::endpoint(tcp::v4(), port));
  }
  std::error_code failure;
  const asio::ip::address address = asio::ip::make_address(host, failure);
  if (failure) {
    return error(Code::kInvalidArgument, "cannot listen on \"{}\": it is no numeric address", host);
  }
  return bind_to(tcp::endpoint(address, port));
}

void Server::serve() {
  const std::lock_guard lock(mutex_);
  thread_ = std::thread([self = shared_from_this()] { self->run(); });
}

void Server::stop() {
  std::thread thread;
  {
    const std::lock_guard lock(mutex_);
    thread = std::move(thread_);
  }
  io_.stop();
  if (thread.joinable()) thread.join();
}

void Server::run() {
  // The application's signal handlers have nothing to do here.
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
  ::pthread_setname_np(::pthread_self(), "zbccl-store");
  accept();
  while (!io_.stopped()) {
    try {
      io_.run();
    } catch (const std::exception& failure) {
      // Out of memory in one connection's handler must not take the other ranks' store away.
      log::warn(log::Subsys::kNet, "store at port {}: {}", port_, failure.what());
    }
  }
  // It stopped by itself, unless stop() has taken the thread and waits for it.
  const std::lock_guard lock(mutex_);
  if (thread_.joinable()) thread_.detach();
}

void Server::accept() {
  acceptor_.async_accept([this](std::error_code failure, tcp::socket socket) {
    on_accept(failure, std::move(socket));
  });
}

void Server::on_accept(std::error_code failure, tcp::socket socket) {
  if (failure == asio::error::operation_aborted) return;
  if (failure) {
    log::info(log::Subsys::kNet, "store at port {}: accept: {}", port_, failure.message());
    // Out of descriptors, most likely: a stranger's may go.
    if (!handshakes_.empty()) handshakes_.front()->close("room was needed");
    accept_pause_.expires_after(kAcceptPause);
    accept_pause_.async_wait([this](std::error_code stopped) {
      if (!stopped) accept();
    });
    return;
  }
  (void)::fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
  auto session = std::make_shared<Session>(std::move(socket), *this);
  session->place = handshakes_.insert(handshakes_.end(), session);
  session->start();
  if (handshakes_.size() > kMaxHandshakes) handshakes_.front()->close("room was needed");
  accept();
}

void Server::on_authenticated(Session& session) {
  clients_.splice(clients_.end(), handshakes_, session.place);
  ++figures_->clients;
  figures_->had_clients = true;
  log::trace(log::Subsys::kNet, "store at port {}: {} joined, {} clients", port_, session.peer(),
             figures_->clients.load());
}

void Server::on_closed(Session& session, bool authenticated, std::string_view why) {
  if (authenticated) {
    --figures_->clients;
    log::trace(log::Subsys::kNet, "store at port {}: {} left: {}", port_, session.peer(), why);
    clients_.erase(session.place);
    stop_if_idle();
  } else {
    count_stranger(session.peer(), why);
    handshakes_.erase(session.place);
  }
}

void Server::count_stranger(std::string_view peer, std::string_view why) {
  const uint64_t count = ++figures_->strangers;
  // A flood of strangers is not to flood the log: all of the first, then each power of two.
  if (count <= 16 || (count & (count - 1)) == 0) {
    log::info(log::Subsys::kNet, "store at port {}: dropped stranger {} from {}: {}", port_, count,
              peer, why);
  }
}

void Server::stop_if_idle() {
  const std::lock_guard lock(mutex_);
  if (!stop_when_idle_ || stopped_ || figures_->clients > 0) return;
  if (!lingered_ && meetings_.awaits_ranks()) {
    linger_.expires_after(kLinger);
    linger_.async_wait([this](std::error_code replaced) {
      if (replaced) return;
      {
        const std::lock_guard relock(mutex_);
        lingered_ = true;
      }
      stop_if_idle();
    });
    return;
  }
  stopped_ = true;
  std::error_code ignored;
  acceptor_.close(ignored);
  while (!handshakes_.empty()) handshakes_.front()->close("the store has stopped");
  io_.stop();
}

// Stops the server, unless that has stopped by itself. A process that was forked from the server's
// has no thread to join, and shares the kernel's event queue with its parent: there it is left
// alone.
class Owner final : public TcpStoreServer {
 public:
  Owner(const std::shared_ptr<Server>& server, std::shared_ptr<Figures> figures)
      : port_(server->port()), figures_(std::move(figures)), server_(server) {}
  ~Owner() override {
    if (const auto running = server()) running->stop();
  }
  uint16_t port() const override { return port_; }
  uint64_t strangers_dropped() const override { return figures_->strangers; }
  size_t clients() const override { return figures_->clients; }
  bool abandoned() const override { return figures_->had_clients && figures_->clients == 0; }
  void stop_when_idle() override {
    if (const auto running = server()) running->stop_when_idle();
  }
  bool keep_serving() override {
    const auto running = server();
    return running != nullptr && running->keep_serving();
  }

 private:
  std::shared_ptr<Server> server() const {
    return process_ == ::getpid() ? server_.lock() : nullptr;
  }

  const pid_t process_ = ::getpid();
  const uint16_t port_;
  const std::shared_ptr<Figures> figures_;
  const std::weak_ptr<Server> server_;
};

}  // namespace

Result<std::unique_ptr<TcpStoreServer>> TcpStoreServer::start(const std::string& host,
                                                              uint16_t port, const Secret& secret) {
  try {
    const auto figures = std::make_shared<Figures>();
    const auto server = std::make_shared<Server>(secret, figures);
    ZBCCL_RETURN_IF_ERROR(server->listen(host, port));
    std::unique_ptr<TcpStoreServer> owner = std::make_unique<Owner>(server, figures);
    server->serve();
    return owner;
  } catch (const std::system_error& failure) {
    return system_error("store server", failure.code().value());
  }
}

}  // namespace zbccl::bootstrap
