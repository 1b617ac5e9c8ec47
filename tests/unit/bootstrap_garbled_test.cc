// Real sockets that misbehave: halves of connections, bytes that come slowly, floods beyond the
// limit, replies that are cut.
#include <algorithm>

#include "bootstrap_fake_server.h"
#include "bootstrap_support.h"
#include "support/process_state.h"

namespace zbccl::bootstrap::test {
namespace {

using zbccl::test::count_descriptors;

void join_everyone(const UniqueId& id, const std::string& name, int ranks) {
  on_threads(ranks, [&](int rank) {
    const auto store = connect_tcp_store(id, soon());
    ASSERT_TRUE(store.ok()) << store.status().to_string();
    const auto hellos = join(**store, name, rank, ranks, std::to_string(rank), soon());
    ASSERT_TRUE(hellos.ok()) << hellos.status().to_string();
  });
}

// One byte a second: each arrives in time, the handshake does not.
TEST(Garbled, StrangerOfOneByteASecondIsDroppedInTime) {
  const TestServer server = serve();
  const UniqueFd slow = raw_connect(server.id.port);
  const std::string opening = preamble() + std::string(kHelloBytes, 'x');
  const auto start = Clock::now();
  bool open = true;
  size_t sent = 0;
  while (open && sent < opening.size()) {
    if (!raw_send(slow.get(), opening.substr(sent++, 1))) break;
    if (sent == 2) join_everyone(server.id, "job", 8);
    pollfd entry{.fd = slow.get(), .events = POLLIN, .revents = 0};
    open = ::poll(&entry, 1, 1'000) == 0;
  }
  EXPECT_LT(sent, opening.size());
  EXPECT_GE(since(start).count(), 3'000);
  EXPECT_TRUE(eventually([&] { return server.server->strangers_dropped() == 1; }));
}

// A rank may be as slow: its frame is whole in the end, and nobody waits for it meanwhile.
TEST(Garbled, RankOfFewBytesASecondIsServed) {
  const TestServer server = serve();
  const Handshake slow = shake_hands(server.id, server.id.secret);
  ASSERT_TRUE(slow.accepted());
  const std::string frame = set_frame("k", "v");
  std::thread sender([&] {
    for (const char byte : frame) {
      raw_send(slow.fd.get(), std::string(1, byte));
      std::this_thread::sleep_for(Milliseconds(100));
    }
  });
  join_everyone(server.id, "job", 8);
  const auto store = *connect_tcp_store(server.id, soon());
  EXPECT_EQ(store->get("k", in(0)).status().code(), Code::kTimeout);
  EXPECT_EQ(*store->get("k", soon()), "v");
  sender.join();
  EXPECT_EQ(raw_receive(slow.fd.get(), kFrameHeaderBytes), frame_header(FrameType::kDone, 0));
}

TEST(Garbled, FloodBeyondTheLimitTakesNoMoreThanTheLimit) {
  constexpr int kFlood = 400;
  constexpr int kLimit = 128;  // of handshakes at once
  const TestServer server = serve();
  const int before = count_descriptors();
  std::vector<UniqueFd> held;
  std::thread flood([&] {
    for (int i = 0; i < kFlood; ++i) held.push_back(raw_connect(server.id.port));
  });
  join_everyone(server.id, "job", 16);
  flood.join();
  EXPECT_TRUE(eventually([&] { return server.server->strangers_dropped() >= kFlood - kLimit; }));
  EXPECT_TRUE(eventually([&] { return server.server->clients() == 0; }));
  EXPECT_LE(count_descriptors() - before - kFlood, kLimit + 1);
  join_everyone(server.id, "again", 16);
  held.clear();
  EXPECT_TRUE(eventually([&] { return count_descriptors() <= before; }));
}

// Ranks are not strangers: as many as come are served.
TEST(Garbled, RanksBeyondTheLimitOfStrangersAreServed) {
  constexpr int kMany = 200;
  const TestServer server = serve();
  std::vector<std::shared_ptr<Store>> stores;
  for (int i = 0; i < kMany; ++i) stores.push_back(*connect_tcp_store(server.id, soon()));
  for (const auto& store : stores) EXPECT_TRUE(store->add("n", 1).ok());
  EXPECT_EQ(*stores[0]->get("n", soon()), std::to_string(kMany));
  EXPECT_EQ(server.server->strangers_dropped(), 0U);
}

// It will say nothing more, though it still listens: who attends is then gone for the others.
TEST(Garbled, HalfClosedRankIsGone) {
  const TestServer server = serve();
  const Handshake half = shake_hands(server.id, server.id.secret);
  raw_send(half.fd.get(), attend_frame("job", 1, 2, 7) + get_frame(nullptr, 0, Milliseconds(0)));
  EXPECT_TRUE(eventually([&] { return server.server->clients() == 1; }));
  const auto store = *connect_tcp_store(server.id, soon());
  ASSERT_TRUE(store->attend("job", 0, 2).ok());
  ::shutdown(half.fd.get(), SHUT_WR);
  const Status status = store->get("job/never", soon()).status();
  EXPECT_EQ(status.code(), Code::kRemoteFailed) << status.to_string();
  EXPECT_NE(status.message().find("rank 1 ended"), std::string::npos) << status.message();
  EXPECT_TRUE(closed_by_peer(half.fd.get()));
}

TEST(Garbled, ResetRankIsGone) {
  const TestServer server = serve();
  Handshake rank = shake_hands(server.id, server.id.secret);
  const auto store = *connect_tcp_store(server.id, soon());
  raw_send(rank.fd.get(), attend_frame("job", 1, 2, 7));
  ASSERT_TRUE(store->attend("job", 0, 2).ok());
  const linger hard{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(rank.fd.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
  // The attend was read, so that the reset does not overtake it.
  raw_send(rank.fd.get(), add_frame("n", 1));
  (void)raw_receive(rank.fd.get(), kFrameHeaderBytes + 8);
  rank.fd.reset();
  EXPECT_EQ(store->get("job/never", soon()).status().code(), Code::kRemoteFailed);
}

// The server's half of the handshake by hand; false if the client went away.
bool accept_hands(int fd) {
  const std::string opening = raw_receive(fd, kPreambleBytes + kHelloBytes);
  if (opening.size() != kPreambleBytes + kHelloBytes) return false;
  const Nonce client = parse_hello(std::string_view(opening).substr(kPreambleBytes)).nonce;
  Hello mine;
  mine.nonce = *make_nonce();
  raw_send(fd, preamble() + encode_hello(mine));
  if (raw_receive(fd, kProofBytes).size() != kProofBytes) return false;
  const Proof proof = *make_proof(some_secret(), Role::kServer, client, mine.nonce);
  return raw_send(fd, encode_verdict(Verdict::kAccepted, proof));
}

std::shared_ptr<Store> client_of(const FakeServer& server) {
  return *connect_tcp_store({"127.0.0.1", server.port(), some_secret()}, soon());
}

TEST(Garbled, ReplyThatIsCutIsANetworkErrorAtOnce) {
  const std::string value = frame_header(FrameType::kValue, 6) + "abcdef";
  for (size_t length = 0; length < value.size(); ++length) {
    std::atomic<int> connections{0};
    const FakeServer server([&](int fd) {
      ++connections;
      if (!accept_hands(fd)) return;
      (void)raw_receive(fd, 1);
      raw_send(fd, value.substr(0, length));
    });
    const auto store = client_of(server);
    const auto start = Clock::now();
    const Status status = store->get("k", soon()).status();
    EXPECT_EQ(status.code(), Code::kNetwork) << length << ": " << status.to_string();
    EXPECT_LT(since(start).count(), 10'000);
    // The next request has a connection of its own.
    EXPECT_EQ(store->get("k", soon()).status().code(), Code::kNetwork);
    EXPECT_GE(connections, 2);
  }
}

TEST(Garbled, ReplyThatStallsIsATimeout) {
  const FakeServer server([&](int fd) {
    if (!accept_hands(fd)) return;
    (void)raw_receive(fd, 1);
    raw_send(fd, frame_header(FrameType::kValue, 6).substr(0, 5));
    (void)closed_by_peer(fd);
  });
  const auto store = client_of(server);
  const auto start = Clock::now();
  const Status status = store->get("k", in(100)).status();
  EXPECT_EQ(status.code(), Code::kTimeout) << status.to_string();
  EXPECT_LT(since(start).count(), 10'000);
}

TEST(Garbled, SeveralValuesOfWhichOneIsCut) {
  const FakeServer server([&](int fd) {
    if (!accept_hands(fd)) return;
    (void)raw_receive(fd, 1);
    raw_send(fd, frame_header(FrameType::kValue, 1) + "a" + frame_header(FrameType::kValue, 100));
  });
  const auto store = client_of(server);
  const std::vector<std::string> keys = {"a", "b"};
  EXPECT_EQ(store->get(keys, soon()).status().code(), Code::kNetwork);
}

TEST(Garbled, ListenerThatSaysNothingIsATimeout) {
  const FakeServer mute([](int fd) { (void)closed_by_peer(fd); });
  const auto start = Clock::now();
  const auto store = connect_tcp_store({"127.0.0.1", mute.port(), some_secret()}, in(300));
  EXPECT_EQ(store.status().code(), Code::kTimeout) << store.status().to_string();
  EXPECT_NE(store.status().message().find(std::to_string(mute.port())), std::string::npos);
  EXPECT_LT(since(start).count(), 10'000);
}

}  // namespace
}  // namespace zbccl::bootstrap::test
