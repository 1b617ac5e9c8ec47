// Ranks join while strangers of every sort are at the door.
#include <random>

#include "bootstrap_support.h"

namespace zbccl::bootstrap::test {
namespace {

constexpr int kRanks = 16;

// One visit of a stranger. Connections that it leaves open go to `held`.
using Visit = std::function<void(const UniqueId&, std::vector<UniqueFd>& held)>;

void connect_and_close(const UniqueId& id, std::vector<UniqueFd>&) { raw_connect(id.port); }

void connect_and_reset(const UniqueId& id, std::vector<UniqueFd>&) {
  const UniqueFd fd = raw_connect(id.port);
  const linger hard{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
}

void half_open(const UniqueId& id, std::vector<UniqueFd>& held) {
  held.push_back(raw_connect(id.port));
}

void stop_within_the_opening(const UniqueId& id, std::vector<UniqueFd>& held) {
  UniqueFd fd = raw_connect(id.port);
  raw_send(fd.get(), preamble() + "half a he");
  held.push_back(std::move(fd));
}

void wrong_magic(const UniqueId& id, std::vector<UniqueFd>&) {
  const UniqueFd fd = raw_connect(id.port);
  raw_send(fd.get(), "GET / HTTP/1.1\r\nHost: here\r\n\r\n");
  EXPECT_TRUE(closed_by_peer(fd.get()));
}

void wrong_secret(const UniqueId& id, std::vector<UniqueFd>&) {
  EXPECT_FALSE(shake_hands(id, some_secret(0x55)).accepted());
}

void other_version(const UniqueId& id, std::vector<UniqueFd>&) {
  const UniqueFd fd = raw_connect(id.port);
  std::string opening = preamble();
  opening[9] = 1;
  raw_send(fd.get(), opening);
  (void)raw_receive(fd.get(), kPreambleBytes, 1'000);
}

void frame_without_handshake(const UniqueId& id, std::vector<UniqueFd>&) {
  const UniqueFd fd = raw_connect(id.port);
  raw_send(fd.get(), set_frame("job/outcome", "2 you are all wrong"));
  EXPECT_TRUE(closed_by_peer(fd.get()));
}

void oversize(const UniqueId& id, std::vector<UniqueFd>&) {
  const UniqueFd fd = raw_connect(id.port);
  const std::string much(1 << 20, '\xff');
  raw_send(fd.get(), much);  // refused at some point, since the server closes
}

// A byte now and then: what a slow-loris does to hold connections.
void drip(const UniqueId& id, std::vector<UniqueFd>& held) {
  UniqueFd fd = raw_connect(id.port);
  for (const char byte : preamble().substr(0, 6)) {
    raw_send(fd.get(), std::string(1, byte));
    std::this_thread::sleep_for(Milliseconds(2));
  }
  held.push_back(std::move(fd));
}

void replay(const UniqueId& id, std::vector<UniqueFd>&, const Handshake& genuine) {
  const UniqueFd fd = raw_connect(id.port);
  raw_send(fd.get(), genuine.opening + genuine.proof);
  const std::string answer =
      raw_receive(fd.get(), kPreambleBytes + kHelloBytes + kVerdictBytes, 5'000);
  // Evicted by the flood, or told no; never let in.
  if (answer.size() > kPreambleBytes + kHelloBytes) {
    EXPECT_EQ(static_cast<Verdict>(answer[kPreambleBytes + kHelloBytes]), Verdict::kRejected);
  }
}

// All ranks join; false if one could not.
void join_everyone(const UniqueId& id, const std::string& name) {
  on_threads(kRanks, [&](int rank) {
    std::mt19937 random(static_cast<unsigned>(rank));
    std::this_thread::sleep_for(Milliseconds(random() % 100));
    const auto store = connect_tcp_store(id, soon());
    ASSERT_TRUE(store.ok()) << store.status().to_string();
    const auto hellos = join(**store, name, rank, kRanks, std::to_string(rank), soon());
    ASSERT_TRUE(hellos.ok()) << hellos.status().to_string();
    for (int r = 0; r < kRanks; ++r) {
      EXPECT_EQ((*hellos)[static_cast<size_t>(r)], std::to_string(r));
    }
  });
}

class StrangersTest : public testing::TestWithParam<std::pair<const char*, Visit>> {};

TEST_P(StrangersTest, DisturbNobodyAndAreCounted) {
  constexpr int kVisits = 40;
  const TestServer server = serve();
  std::vector<UniqueFd> held;
  std::thread strangers([&] {
    for (int i = 0; i < kVisits; ++i) GetParam().second(server.id, held);
  });
  join_everyone(server.id, "job");
  strangers.join();
  held.clear();
  EXPECT_TRUE(eventually([&] { return server.server->strangers_dropped() == kVisits; }))
      << server.server->strangers_dropped();
  EXPECT_TRUE(eventually([&] { return server.server->clients() == 0; }));
}

INSTANTIATE_TEST_SUITE_P(Kinds, StrangersTest,
                         testing::ValuesIn(std::vector<std::pair<const char*, Visit>>{
                             {"ConnectAndClose", connect_and_close},
                             {"ConnectAndReset", connect_and_reset},
                             {"HalfOpen", half_open},
                             {"StopWithinTheOpening", stop_within_the_opening},
                             {"WrongMagic", wrong_magic},
                             {"WrongSecret", wrong_secret},
                             {"OtherVersion", other_version},
                             {"FrameWithoutHandshake", frame_without_handshake},
                             {"Oversize", oversize},
                             {"Drip", drip}}),
                         [](const auto& kind) { return std::string(kind.param.first); });

TEST(Strangers, FloodOfAllSorts) {
  const TestServer server = serve();
  const Handshake genuine = shake_hands(server.id, server.id.secret);
  ASSERT_TRUE(genuine.accepted());
  const std::vector<Visit> visits{
      connect_and_close,
      connect_and_reset,
      half_open,
      stop_within_the_opening,
      wrong_secret,
      other_version,
      oversize,
      [&](const UniqueId& id, std::vector<UniqueFd>& held) { replay(id, held, genuine); }};
  constexpr int kFloods = 4;
  constexpr int kVisits = 80;
  std::vector<std::vector<UniqueFd>> held(kFloods);
  std::thread strangers([&] {
    on_threads(kFloods, [&](int flood) {
      for (int i = 0; i < kVisits; ++i) {
        visits[static_cast<size_t>(flood + i) % visits.size()](server.id,
                                                               held[static_cast<size_t>(flood)]);
      }
    });
  });
  join_everyone(server.id, "job");
  strangers.join();
  join_everyone(server.id, "again");
  for (auto& open : held) open.clear();
  // A rank's own connection may have had to make room and have come again.
  EXPECT_TRUE(eventually([&] { return server.server->strangers_dropped() >= kFloods * kVisits; }))
      << server.server->strangers_dropped();
}

TEST(Strangers, ConnectionsThatAreHeldOpenMakeRoom) {
  const TestServer server = serve();
  std::vector<UniqueFd> held;
  for (int i = 0; i < 300; ++i) half_open(server.id, held);
  join_everyone(server.id, "job");
  // The oldest had to go before their time was up.
  EXPECT_GE(server.server->strangers_dropped(), 100U);
}

TEST(Strangers, TheHandshakeHasADeadline) {
  const TestServer server = serve();
  std::vector<UniqueFd> held;
  half_open(server.id, held);
  stop_within_the_opening(server.id, held);
  for (const UniqueFd& fd : held) EXPECT_TRUE(closed_by_peer(fd.get()));
  EXPECT_TRUE(eventually([&] { return server.server->strangers_dropped() == 2; }));
}

}  // namespace
}  // namespace zbccl::bootstrap::test
