// The TCP store's connections: who is let in, and what becomes of the rest.
#include <fcntl.h>
#include <sys/resource.h>

#include "bootstrap_support.h"
#include "support/process_state.h"

namespace zbccl::bootstrap::test {
namespace {

using zbccl::test::count_descriptors;
using zbccl::test::count_threads;

constexpr int kPromptMs = 2'000;

TEST(TcpStore, DescribesItself) {
  const TestServer server = serve();
  const auto store = connect_tcp_store(server.id, soon());
  ASSERT_TRUE(store.ok());
  EXPECT_EQ((*store)->describe(), "tcp 127.0.0.1:" + std::to_string(server.id.port));
  EXPECT_TRUE(eventually([&] { return server.server->clients() == 1; }));
  EXPECT_EQ(server.server->strangers_dropped(), 0U);
}

TEST(TcpStore, ListensOnEveryInterface) {
  auto server = TcpStoreServer::start("", 0, some_secret());
  ASSERT_TRUE(server.ok()) << server.status().to_string();
  const UniqueId id{"127.0.0.1", (*server)->port(), some_secret()};
  EXPECT_TRUE(connect_tcp_store(id, soon()).ok());
  const UniqueId announced{host_address(), (*server)->port(), some_secret()};
  EXPECT_TRUE(connect_tcp_store(announced, soon()).ok());
}

TEST(TcpStore, RefusesABadAddressAndATakenPort) {
  EXPECT_EQ(TcpStoreServer::start("nowhere", 0, some_secret()).status().code(),
            Code::kInvalidArgument);
  const TestServer first = serve();
  const auto second = TcpStoreServer::start("127.0.0.1", first.id.port, some_secret());
  EXPECT_EQ(second.status().code(), Code::kNetwork);
  EXPECT_NE(second.status().message().find(std::to_string(first.id.port)), std::string::npos);
}

TEST(TcpStore, WrongSecretIsToldAtOnce) {
  const TestServer server = serve();
  UniqueId wrong = server.id;
  wrong.secret = some_secret(9);
  const auto start = Clock::now();
  const auto store = connect_tcp_store(wrong, soon());
  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.status().code(), Code::kInvalidUsage);
  EXPECT_LT(since(start).count(), kPromptMs);
  EXPECT_EQ(store.status().message().find(to_hex(wrong.secret)), std::string::npos);
  EXPECT_TRUE(eventually([&] { return server.server->strangers_dropped() == 1; }));
}

TEST(TcpStore, OtherProtocolVersionIsToldAtOnce) {
  // The server's side: an older client gets the preamble alone.
  const TestServer server = serve();
  UniqueFd fd = raw_connect(server.id.port);
  std::string opening = preamble();
  opening[8] = 77;
  raw_send(fd.get(), opening + std::string(kHelloBytes, 'h'));
  EXPECT_EQ(raw_receive(fd.get(), kPreambleBytes), preamble());
  fd.reset();
  EXPECT_TRUE(eventually([&] { return server.server->strangers_dropped() == 1; }));
}

// Answers every connection with the given bytes, then closes it.
class Impostor {
 public:
  explicit Impostor(std::string answer) : answer_(std::move(answer)) {
    listener_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(::listen(listener_.get(), 16), 0);
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] {
      while (true) {
        const UniqueFd fd(::accept(listener_.get(), nullptr, nullptr));
        if (!fd.valid()) return;
        (void)raw_receive(fd.get(), 1, 1'000);
        raw_send(fd.get(), answer_);
        ::shutdown(fd.get(), SHUT_WR);
        (void)closed_by_peer(fd.get(), 2'000);
      }
    });
  }
  ~Impostor() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  uint16_t port() const { return port_; }

 private:
  const std::string answer_;
  UniqueFd listener_;
  uint16_t port_ = 0;
  std::thread thread_;
};

TEST(TcpStore, ClientTellsAnotherVersionFromAnotherProgram) {
  std::string other_version = preamble();
  other_version[8] = 77;
  const Impostor newer(other_version);
  EXPECT_EQ(connect_tcp_store({"127.0.0.1", newer.port(), some_secret()}, soon()).status().code(),
            Code::kVersionMismatch);
  const Impostor web("HTTP/1.1 400 Bad Request\r\n\r\n");
  EXPECT_EQ(connect_tcp_store({"127.0.0.1", web.port(), some_secret()}, soon()).status().code(),
            Code::kInvalidUsage);
}

TEST(TcpStore, ServerThatDoesNotKnowTheSecretIsRefused) {
  Hello hello;
  hello.nonce = *make_nonce();
  const Impostor guess(preamble() + encode_hello(hello) +
                       encode_verdict(Verdict::kAccepted, Proof{}));
  EXPECT_EQ(connect_tcp_store({"127.0.0.1", guess.port(), some_secret()}, soon()).status().code(),
            Code::kInvalidUsage);
}

TEST(TcpStore, ClientThatHangsUpOnEveryoneIsATimeout) {
  const Impostor silent("");
  const auto store = connect_tcp_store({"127.0.0.1", silent.port(), some_secret()}, in(200));
  EXPECT_EQ(store.status().code(), Code::kTimeout) << store.status().to_string();
}

TEST(TcpStore, ConnectWaitsForTheServer) {
  uint16_t port = 0;
  { port = serve().id.port; }
  const UniqueId id{"127.0.0.1", port, some_secret()};
  const auto early = connect_tcp_store(id, in(50));
  ASSERT_FALSE(early.ok());
  EXPECT_EQ(early.status().code(), Code::kTimeout);
  EXPECT_NE(early.status().message().find("127.0.0.1:" + std::to_string(port)), std::string::npos);

  std::unique_ptr<TcpStoreServer> server;
  std::thread late([&] {
    std::this_thread::sleep_for(Milliseconds(100));
    auto started = TcpStoreServer::start("127.0.0.1", port, some_secret());
    ASSERT_TRUE(started.ok()) << started.status().to_string();
    server = std::move(*started);
  });
  EXPECT_TRUE(connect_tcp_store(id, soon()).ok());
  late.join();
}

TEST(TcpStore, DeadServerIsANetworkErrorThatNamesIt) {
  TestServer server = serve();
  const auto store = *connect_tcp_store(server.id, soon());
  ASSERT_TRUE(store->set("k", "v").ok());
  std::thread killer([&] {
    std::this_thread::sleep_for(Milliseconds(50));
    server.server.reset();
  });
  const auto start = Clock::now();
  const auto waiting = store->get("absent", soon());
  killer.join();
  EXPECT_EQ(waiting.status().code(), Code::kNetwork) << waiting.status().to_string();
  EXPECT_LT(since(start).count(), kPromptMs);
  for (const Status& status : {waiting.status(), store->set("k", "w"), store->add("n", 1).status(),
                               store->get("k", soon()).status()}) {
    EXPECT_EQ(status.code(), Code::kNetwork) << status.to_string();
    EXPECT_NE(status.message().find(store->describe()), std::string::npos) << status.message();
  }
}

TEST(TcpStore, ReplayedHandshakeFails) {
  const TestServer server = serve();
  const Handshake genuine = shake_hands(server.id, server.id.secret);
  ASSERT_TRUE(genuine.accepted());

  UniqueFd fd = raw_connect(server.id.port);
  raw_send(fd.get(), genuine.opening + genuine.proof);
  const std::string answer = raw_receive(fd.get(), kPreambleBytes + kHelloBytes + kVerdictBytes);
  ASSERT_EQ(answer.size(), kPreambleBytes + kHelloBytes + kVerdictBytes);
  EXPECT_EQ(static_cast<Verdict>(answer[kPreambleBytes + kHelloBytes]), Verdict::kRejected);
  fd.reset();
  EXPECT_TRUE(eventually([&] { return server.server->strangers_dropped() == 1; }));
  EXPECT_EQ(server.server->clients(), 1U);
}

TEST(TcpStore, RejectedStrangerGetsNoProof) {
  const TestServer server = serve();
  const Handshake wrong = shake_hands(server.id, some_secret(5));
  ASSERT_EQ(wrong.verdict.size(), kVerdictBytes);
  EXPECT_FALSE(wrong.accepted());
  EXPECT_EQ(wrong.verdict.substr(1), std::string(kProofBytes, '\0'));
}

TEST(TcpStore, FramesBeforeTheHandshakeAreNotParsed) {
  const TestServer server = serve();
  const UniqueFd fd = raw_connect(server.id.port);
  raw_send(fd.get(), set_frame("k", "stranger"));
  EXPECT_TRUE(closed_by_peer(fd.get()));
  const auto store = *connect_tcp_store(server.id, soon());
  EXPECT_EQ(store->get("k", in(0)).status().code(), Code::kTimeout);
}

TEST(TcpStore, GarbageFromAClientDropsThatClientOnly) {
  const TestServer server = serve();
  const auto store = *connect_tcp_store(server.id, soon());
  ASSERT_TRUE(store->set("k", "v").ok());
  std::string huge = frame_header(FrameType::kSet, 0);
  huge.replace(4, 4, "\xff\xff\xff\xff");
  for (const std::string& garbage :
       {std::string(64, 'g'), huge, frame_header(FrameType::kGet, 3) + "abc",
        frame_header(FrameType::kDone, 0), frame_header(FrameType::kSet, 1) + "x"}) {
    const Handshake member = shake_hands(server.id, server.id.secret);
    ASSERT_TRUE(member.accepted());
    ASSERT_TRUE(raw_send(member.fd.get(), garbage));
    EXPECT_TRUE(closed_by_peer(member.fd.get()));
    EXPECT_EQ(*store->get("k", soon()), "v");
  }
  EXPECT_TRUE(eventually([&] { return server.server->clients() == 1; }));
  EXPECT_EQ(server.server->strangers_dropped(), 0U);
}

TEST(TcpStore, RequestsMayBeSentAhead) {
  const TestServer server = serve();
  const Handshake member = shake_hands(server.id, server.id.secret);
  ASSERT_TRUE(member.accepted());
  const std::string key = "later";
  raw_send(member.fd.get(),
           add_frame("n", 2) + get_frame(&key, 1, Milliseconds(30'000)) + add_frame("n", 3));
  EXPECT_EQ(raw_receive(member.fd.get(), 16), sum_frame(2));
  ASSERT_TRUE((*connect_tcp_store(server.id, soon()))->set(key, "v").ok());
  EXPECT_EQ(raw_receive(member.fd.get(), 9), frame_header(FrameType::kValue, 1) + "v");
  EXPECT_EQ(raw_receive(member.fd.get(), 16), sum_frame(5));
}

TEST(TcpStore, ClientThatLeavesWhileItWaitsIsForgotten) {
  const TestServer server = serve();
  const std::string key = "never";
  for (int i = 0; i < 5; ++i) {
    const Handshake member = shake_hands(server.id, server.id.secret);
    ASSERT_TRUE(member.accepted());
    raw_send(member.fd.get(), get_frame(&key, 1, Milliseconds(3'600'000)));
  }
  EXPECT_TRUE(eventually([&] { return server.server->clients() == 0; }));
  const auto store = *connect_tcp_store(server.id, soon());
  EXPECT_TRUE(store->set(key, "v").ok());
}

TEST(TcpStore, FrameInSmallPiecesIsWhole) {
  const TestServer server = serve();
  const Handshake member = shake_hands(server.id, server.id.secret);
  ASSERT_TRUE(member.accepted());
  for (const char byte : set_frame("k", "slow")) {
    ASSERT_TRUE(raw_send(member.fd.get(), std::string(1, byte)));
    std::this_thread::sleep_for(Milliseconds(1));
  }
  EXPECT_EQ(raw_receive(member.fd.get(), kFrameHeaderBytes), frame_header(FrameType::kDone, 0));
}

TEST(TcpStore, StopsWhenIdle) {
  TestServer server = serve();
  auto store = *connect_tcp_store(server.id, soon());
  server.server->stop_when_idle();
  EXPECT_TRUE(store->set("k", "v").ok());
  EXPECT_TRUE(server.server->keep_serving());
  store.reset();
  EXPECT_TRUE(eventually([&] { return server.server->clients() == 0; }));
  store = *connect_tcp_store(server.id, soon());
  EXPECT_EQ(*store->get("k", soon()), "v");
  server.server->stop_when_idle();
  store.reset();
  EXPECT_TRUE(eventually([&] { return !raw_connect(server.id.port).valid(); }));
  EXPECT_FALSE(server.server->keep_serving());
}

TEST(TcpStore, ThatHasStoppedByItselfKeepsNothing) {
  const int threads = count_threads();
  const int descriptors = count_descriptors();
  const TestServer server = serve();
  auto store = *connect_tcp_store(server.id, soon());
  server.server->stop_when_idle();
  store.reset();
  EXPECT_TRUE(eventually([&] {
    return count_threads() == threads && count_descriptors() == descriptors;
  })) << zbccl::test::describe_descriptors();
  EXPECT_TRUE(server.server->abandoned());
  EXPECT_EQ(server.server->port(), server.id.port);
}

TEST(TcpStore, ServerSurvivesLackOfDescriptors) {
  const TestServer server = serve();
  const auto store = *connect_tcp_store(server.id, soon());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  // Everything that is free up to the limit is taken, then strangers knock.
  rlimit low = before;
  low.rlim_cur = 64;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  std::vector<UniqueFd> taken;
  std::vector<UniqueFd> strangers;
  for (int i = 0; i < 4; ++i) strangers.push_back(raw_connect(server.id.port));
  while (true) {
    UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) break;
    taken.push_back(std::move(fd));
  }
  taken.pop_back();
  strangers.push_back(raw_connect(server.id.port));
  std::this_thread::sleep_for(Milliseconds(100));
  EXPECT_TRUE(store->set("k", "v").ok());
  taken.clear();
  strangers.clear();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(connect_tcp_store(server.id, soon()).ok());
}

}  // namespace
}  // namespace zbccl::bootstrap::test
