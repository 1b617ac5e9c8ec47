// The server's side of the TCP store: its handshake and its frames, over a socket pair, with the
// server's loop turned by hand. The first byte: 0 sends the rest as it is; otherwise two clients
// prove themselves first, and blocks of the rest (a byte of length before each) go to one and the
// other by turns.
#include "bootstrap/tcp_store_session.h"
#include "fuzz.h"

using namespace zbccl;
using namespace zbccl::bootstrap;
using fuzz::require;

namespace {

class Host final : public SessionHost {
 public:
  const Secret& secret() const override { return secret_; }
  StoreTable& table() override { return table_; }
  Meetings& meetings() override { return meetings_; }
  void on_authenticated(Session&) override { ++authenticated_; }
  void on_closed(Session& session, bool, std::string_view) override {
    sessions_.erase(session.place);
  }

  UniqueFd connect() {
    auto [client, server] = fuzz::make_socket_pair();
    asio::ip::tcp::socket socket(io_);
    socket.assign(asio::ip::tcp::v4(), server.release());
    auto session = std::make_shared<Session>(std::move(socket), *this);
    session->place = sessions_.insert(sessions_.end(), session);
    session->start();
    return std::move(client);
  }
  // Until nothing is left to do at once.
  void turn() {
    io_.restart();
    while (io_.poll() > 0) {
    }
  }
  void close_all() {
    while (!sessions_.empty()) sessions_.front()->close("over");
    turn();
  }
  int authenticated() const { return authenticated_; }

 private:
  const Secret secret_{};
  asio::io_context io_{1};
  StoreTable table_;
  Meetings meetings_{1};
  SessionList sessions_;
  int authenticated_ = 0;
};

std::string hear(int fd) {
  char bytes[4096];
  const ssize_t got = ::recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
  return got > 0 ? std::string(bytes, static_cast<size_t>(got)) : std::string();
}

UniqueFd connect_and_prove(Host& host) {
  UniqueFd client = host.connect();
  const Hello hello;
  fuzz::say(client.get(), preamble() + encode_hello(hello));
  host.turn();
  const std::string answer = hear(client.get());
  require(answer.size() == kPreambleBytes + kHelloBytes, "the server answers a hello");
  const Nonce nonce = parse_hello(std::string_view(answer).substr(kPreambleBytes)).nonce;
  const Proof proof = *make_proof(host.secret(), Role::kClient, hello.nonce, nonce);
  fuzz::say(client.get(), {reinterpret_cast<const char*>(proof.data()), proof.size()});
  host.turn();
  require(hear(client.get()).size() == kVerdictBytes, "a good proof is accepted");
  return client;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  Host host;
  if (input.byte() == 0) {
    const UniqueFd stranger = host.connect();
    fuzz::say(stranger.get(), input.rest());
    host.turn();
    require(host.authenticated() == 0, "a stranger stays one");
    host.close_all();
    return 0;
  }
  UniqueFd clients[] = {connect_and_prove(host), connect_and_prove(host)};
  std::string_view rest = input.rest();
  int reconnects = 0;
  for (size_t turn = 0; !rest.empty() && turn < 32; ++turn) {
    const auto length = static_cast<size_t>(static_cast<uint8_t>(rest.front()));
    rest.remove_prefix(1);
    UniqueFd& client = clients[turn % 2];
    if (length == 0) {
      if (++reconnects > 3) break;
      client = connect_and_prove(host);  // the one before it hangs up
      continue;
    }
    fuzz::say(client.get(), rest.substr(0, length));
    rest.remove_prefix(std::min(length, rest.size()));
    host.turn();
    (void)hear(client.get());
  }
  clients[0].reset();
  host.turn();
  host.close_all();
  return 0;
}
