// Ranks that attend a meeting of the TCP store: who goes away without a goodbye is named to the
// others at once, and who leaves in order is not.
#include <sys/mman.h>
#include <sys/wait.h>

#include <csignal>

#include "bootstrap_support.h"

namespace zbccl::bootstrap::test {
namespace {

// Far below every deadline here, far above what a busy machine needs.
constexpr int kPromptMs = 5'000;

// A client by hand, which can hang up without a goodbye.
struct RawRank {
  UniqueFd fd;
  RawRank(const UniqueId& id, const std::string& name, int rank, int nranks)
      : fd(shake_hands(id, id.secret).fd) {
    // The reply to the add says that the attend was seen.
    raw_send(fd.get(), attend_frame(name, rank, nranks, 7) + add_frame(name + "/count", 1));
    EXPECT_EQ(raw_receive(fd.get(), kFrameHeaderBytes + 8).size(), kFrameHeaderBytes + 8);
  }
  void leave(const std::string& name, int rank, const Status& outcome) const {
    raw_send(fd.get(), leave_frame(name, rank, outcome) + add_frame("seen", 1));
    EXPECT_EQ(raw_receive(fd.get(), kFrameHeaderBytes + 8).size(), kFrameHeaderBytes + 8);
  }
};

class MeetingTest : public testing::Test {
 protected:
  std::shared_ptr<Store> attend(const std::string& name, int rank, int nranks) {
    auto store = *connect_tcp_store(server_.id, soon());
    EXPECT_TRUE(store->attend(name, rank, nranks).ok());
    (void)store->add("seen", 1);
    return store;
  }
  TestServer server_ = serve();
};

void expect_named(const Status& status, const std::string& text) {
  EXPECT_EQ(status.code(), Code::kRemoteFailed) << status.to_string();
  EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
}

TEST_F(MeetingTest, WhoHangsUpIsNamedToEveryWaiter) {
  RawRank victim(server_.id, "job", 2, 4);
  std::atomic<int> waiting{0};
  std::thread death([&] {
    EXPECT_TRUE(eventually([&] { return waiting == 3; }));
    std::this_thread::sleep_for(Milliseconds(50));
    victim.fd.reset();
  });
  on_threads(3, [&](int i) {
    const auto store = attend("job", i == 2 ? 3 : i, 4);
    ++waiting;
    const auto start = Clock::now();
    expect_named(store->get("job/never", soon()).status(), "rank 2 ended");
    EXPECT_LT(since(start).count(), kPromptMs);
    // Nor may anyone go on: the meeting cannot come to an end without rank 2.
    expect_named(store->set("job/mine", "x"), "rank 2 ended");
    expect_named(store->add("job/count", 1).status(), "rank 2 ended");
    // What is there already can be read, and other keys are not the meeting's.
    EXPECT_EQ(*store->get("job/count", soon()), "1");
    EXPECT_TRUE(store->set("jobs/other", "x").ok());
    EXPECT_EQ(store->get("job", in(20)).status().code(), Code::kTimeout);
  });
  death.join();
}

TEST_F(MeetingTest, WhoComesLaterIsToldAtOnce) {
  RawRank(server_.id, "job", 0, 2).fd.reset();
  const auto watcher = *connect_tcp_store(server_.id, soon());
  EXPECT_TRUE(eventually([&] { return server_.server->clients() == 1; }));
  const auto late = join(*attend("job", 1, 2), "job", 1, 2, "", soon());
  expect_named(late.status(), "rank 0 ended");
}

TEST_F(MeetingTest, JoinNamesIt) {
  RawRank victim(server_.id, "job", 1, 3);
  std::thread death([&] {
    std::this_thread::sleep_for(Milliseconds(100));
    victim.fd.reset();
  });
  on_threads(2, [&](int i) {
    const int rank = 2 * i;
    const auto store = attend("job", rank, 3);
    const auto start = Clock::now();
    const Joined joined = join(*store, "job", rank, 3, "hello", soon());
    expect_named(joined.status(), "rank 1 ended");
    EXPECT_LT(since(start).count(), kPromptMs);
    store->leave("job", rank, joined.status());
  });
  death.join();
  // The store serves the next meeting, in which nothing of this is left.
  on_threads(2, [&](int rank) {
    const auto store = attend("again", rank, 2);
    EXPECT_TRUE(join(*store, "again", rank, 2, "hello", soon()).ok());
    store->leave("again", rank, {});
  });
}

TEST_F(MeetingTest, WhoLeavesInOrderIsNoCasualty) {
  const RawRank goer(server_.id, "job", 1, 2);
  const auto store = attend("job", 0, 2);
  goer.leave("job", 1, {});
  EXPECT_EQ(store->get("job/never", in(100)).status().code(), Code::kTimeout);
}

TEST_F(MeetingTest, ClientLeavesInOrder) {
  const auto stays = attend("job", 0, 2);
  {
    const auto goes = attend("job", 1, 2);
    goes->leave("job", 1, {});
  }
  EXPECT_TRUE(eventually([&] { return server_.server->clients() == 1; }));
  EXPECT_EQ(stays->get("job/never", in(50)).status().code(), Code::kTimeout);
}

TEST_F(MeetingTest, ErrorThatARankLeavesWithEndsTheMeeting) {
  const RawRank goer(server_.id, "job", 1, 2);
  const auto store = attend("job", 0, 2);
  std::thread leaver([&] {
    std::this_thread::sleep_for(Milliseconds(50));
    goer.leave("job", 1, error(Code::kOutOfMemory, "no pages"));
  });
  expect_named(store->get("job/never", soon()).status(),
               "rank 1 gave up making the communicator: no pages");
  leaver.join();
  const RawRank late(server_.id, "other", 1, 2);
  const auto other = attend("other", 0, 2);
  late.leave("other", 1, error(Code::kTimeout, "rank 7 never came"));
  const Status status = other->get("other/never", soon()).status();
  EXPECT_EQ(status.code(), Code::kTimeout);
  EXPECT_NE(status.message().find("rank 7 never came"), std::string::npos) << status.message();
}

TEST_F(MeetingTest, OneTooManyHarmsNobody) {
  const auto first = attend("job", 0, 2);
  const auto second = attend("job", 1, 2);
  RawRank(server_.id, "job", 1, 2).fd.reset();
  EXPECT_TRUE(eventually([&] { return server_.server->clients() == 2; }));
  EXPECT_EQ(first->get("job/never", in(50)).status().code(), Code::kTimeout);
  EXPECT_TRUE(second->set("job/mine", "x").ok());
  // Nor does nonsense.
  RawRank(server_.id, "job", -5, -1).fd.reset();
  EXPECT_EQ(first->get("job/never", in(50)).status().code(), Code::kTimeout);
}

TEST_F(MeetingTest, ThreadsOfOneConnectionAreNamedTogether) {
  RawRank victim(server_.id, "job", 1, 4);
  raw_send(victim.fd.get(), attend_frame("job", 3, 4, 7) + add_frame("seen", 1));
  EXPECT_EQ(raw_receive(victim.fd.get(), kFrameHeaderBytes + 8).size(), kFrameHeaderBytes + 8);
  const auto store = attend("job", 0, 4);
  victim.fd.reset();
  expect_named(store->get("job/never", soon()).status(), "ranks 1 and 3 ended");
}

// The server goes with its process: the clients know whose it was, though it can tell nobody.
TEST(MeetingHost, WhoTakesTheStoreAlongIsNamed) {
  struct Board {
    std::atomic<int> port{0};
    std::atomic<int> ready{0};
  };
  void* const memory =
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* const board = new (memory) Board;
  const pid_t host = ::fork();
  if (host == 0) {
    const TestServer server = serve();
    board->port = server.id.port;
    while (board->ready < 1) std::this_thread::sleep_for(Milliseconds(1));
    // Attends after one client and before another.
    const auto store = *connect_tcp_store(server.id, soon());
    (void)store->attend("job", 0, 3);
    (void)store->add("job/count", 1);
    board->ready = 2;
    std::this_thread::sleep_for(std::chrono::seconds(60));
    ::_exit(1);
  }
  ASSERT_TRUE(eventually([&] { return board->port != 0; }));
  const UniqueId id{"127.0.0.1", static_cast<uint16_t>(board->port.load()), some_secret()};
  const auto early = *connect_tcp_store(id, soon());
  ASSERT_TRUE(early->attend("job", 1, 3).ok());
  ASSERT_TRUE(early->add("job/count", 1).ok());
  board->ready = 1;
  ASSERT_TRUE(eventually([&] { return board->ready == 2; }));
  const auto late = *connect_tcp_store(id, soon());
  ASSERT_TRUE(late->attend("job", 2, 3).ok());
  ASSERT_EQ(*late->add("job/count", 1), 3);
  const auto stranger = *connect_tcp_store(id, soon());
  std::thread waiter(
      [&] { expect_named(early->get("job/never", soon()).status(), "rank 0 ended"); });
  std::this_thread::sleep_for(Milliseconds(50));
  ::kill(host, SIGKILL);
  waiter.join();
  ::waitpid(host, nullptr, 0);
  expect_named(late->set("job/mine", "x"), "rank 0 ended");
  // Who attends nothing is only told that the store is gone.
  EXPECT_EQ(stranger->get("x", soon()).status().code(), Code::kNetwork);
  ::munmap(memory, sizeof(Board));
}

}  // namespace
}  // namespace zbccl::bootstrap::test
