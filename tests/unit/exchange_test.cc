#include "memory/exchange.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "memory/attach.h"
#include "memory/unix_socket.h"

namespace zbccl::memory {
namespace {

Deadline soon() { return Deadline::after(Milliseconds(20'000)); }

// A child process with a running exchange and a block of 1 MiB that holds 0x77. It lives until the
// parent hangs up.
class Child {
 public:
  Child() {
    int there[2];
    int back[2];
    EXPECT_EQ(pipe(there), 0);
    EXPECT_EQ(pipe(back), 0);
    pid_ = fork();
    if (pid_ == 0) {
      close(there[1]);
      serve(there[0], back[1]);
    }
    close(there[0]);
    close(back[1]);
    hold_ = UniqueFd(there[1]);
    UniqueFd answers(back[0]);
    EXPECT_EQ(read(answers.get(), &shown_, sizeof shown_), static_cast<ssize_t>(sizeof shown_));
  }
  ~Child() {
    hold_.reset();
    waitpid(pid_, nullptr, 0);
  }
  void kill_now() { ::kill(pid_, SIGKILL); }

  struct Shown {
    ProcessInfo info;
    Location block;
    uint64_t address = 0;
  };
  const Shown& shown() const { return shown_; }
  int pid() const { return pid_; }

 private:
  [[noreturn]] static void serve(int hold, int answers) {
    auto exchange = Exchange::acquire();
    Shown shown;
    shown.info = (*exchange)->info();
    auto block = Pool::process().allocate(1 << 20, Use::kUser);
    std::memset(*block, 0x77, 1 << 20);
    shown.block = *Pool::process().locate(*block, 1);
    shown.address = reinterpret_cast<uint64_t>(*block);
    (void)!write(answers, &shown, sizeof shown);
    char end = 0;
    (void)!read(hold, &end, 1);
    _exit(0);
  }

  pid_t pid_ = -1;
  UniqueFd hold_;
  Shown shown_;
};

TEST(Exchange, ImportsAPeersSegment) {
  Child child;
  auto exchange = Exchange::acquire();
  ASSERT_TRUE(exchange.ok()) << exchange.status().to_string();
  auto peer = (*exchange)->peer(child.shown().info, soon());
  ASSERT_TRUE(peer.ok()) << peer.status().to_string();
  EXPECT_EQ((*peer)->pid(), child.pid());
  EXPECT_FALSE((*peer)->is_self());
  EXPECT_FALSE((*peer)->dead());
  auto base = (*peer)->segment(child.shown().block.segment, soon());
  ASSERT_TRUE(base.ok()) << base.status().to_string();
  const std::byte* block = *base + child.shown().block.offset;
  for (size_t i = 0; i < (1 << 20); ++i) ASSERT_EQ(block[i], std::byte{0x77});
  EXPECT_EQ((*peer)->segment(200, soon()).status().code(), Code::kRevoked);
  EXPECT_FALSE((*peer)->segment(kMaxSegments, soon()).ok());
  auto again = (*exchange)->peer(child.shown().info, soon());
  EXPECT_EQ(again->get(), peer->get()) << "one connection for all communicators";
}

// The answer to a request that was given up comes late, and is not taken for that of the next.
TEST(Exchange, AnImportThatTimedOutSpoilsNoLaterOne) {
  Child child;
  auto exchange = Exchange::acquire();
  auto peer = (*exchange)->peer(child.shown().info, soon());
  ASSERT_TRUE(peer.ok()) << peer.status().to_string();
  ASSERT_EQ(::kill(child.pid(), SIGSTOP), 0);
  ASSERT_EQ(waitpid(child.pid(), nullptr, WUNTRACED), child.pid());
  const uint32_t segment = child.shown().block.segment;
  EXPECT_EQ((*peer)->segment(segment, Deadline::after(Milliseconds(100))).status().code(),
            Code::kTimeout);
  std::atomic<bool> cancelled{false};
  std::thread canceller([&] {
    std::this_thread::sleep_for(Milliseconds(50));
    cancelled = true;
  });
  const auto start = Clock::now();
  EXPECT_EQ((*peer)->segment(segment, soon(), [&] { return cancelled.load(); }).status().code(),
            Code::kAborted);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
  canceller.join();
  ASSERT_EQ(::kill(child.pid(), SIGCONT), 0);
  EXPECT_EQ((*peer)->segment(200, soon()).status().code(), Code::kRevoked);
  auto base = (*peer)->segment(segment, soon());
  ASSERT_TRUE(base.ok()) << base.status().to_string();
  EXPECT_EQ((*base + child.shown().block.offset)[5], std::byte{0x77});
}

TEST(Exchange, ReadsAPeersOrdinaryMemory) {
  Child child;
  auto exchange = Exchange::acquire();
  auto peer = (*exchange)->peer(child.shown().info, soon());
  ASSERT_TRUE(peer.ok()) << peer.status().to_string();
  if (!(*peer)->attachable()) GTEST_SKIP() << "the system forbids cross-memory attach";
  std::vector<std::byte> seen(1 << 20);
  ASSERT_TRUE(attach_read(child.pid(), seen.data(), child.shown().address, seen.size()).ok());
  EXPECT_EQ(seen.back(), std::byte{0x77});
  EXPECT_FALSE(attach_read(child.pid(), seen.data(), 8, 1).ok()) << "an address that is not mapped";
  child.kill_now();
  waitpid(child.pid(), nullptr, 0);
  EXPECT_EQ(attach_read(child.pid(), seen.data(), child.shown().address, 8).code(),
            Code::kRemoteFailed);
}

TEST(Exchange, TellsOfAPeersDeath) {
  Child child;
  auto exchange = Exchange::acquire();
  auto peer = (*exchange)->peer(child.shown().info, soon());
  ASSERT_TRUE(peer.ok()) << peer.status().to_string();
  std::atomic<uint64_t> died{0};
  const uint64_t id = (*exchange)->add_observer([&](uint64_t nonce) { died = nonce; });
  child.kill_now();
  const Deadline deadline = soon();
  while (died == 0 && !deadline.passed()) std::this_thread::sleep_for(Milliseconds(1));
  EXPECT_EQ(died, child.shown().info.nonce);
  EXPECT_TRUE((*peer)->dead());
  (*exchange)->remove_observer(id);
}

TEST(Exchange, DropsStrangersAndGoesOnServing) {
  Child child;
  const std::string name = socket_name(child.shown().info.nonce);
  {  // connects and closes
    ASSERT_TRUE(connect_unix(name, soon()).ok());
  }
  std::vector<UniqueFd> silent;  // connect and say nothing
  for (int i = 0; i < 40; ++i) silent.push_back(connect_unix(name, soon()).value());

  const auto expect_dropped = [](int socket) {
    pollfd item = {socket, POLLIN, 0};
    ASSERT_EQ(poll(&item, 1, 10'000), 1);
    char byte = 0;
    EXPECT_LE(recv(socket, &byte, 1, 0), 0);
  };
  {  // garbage
    auto socket = connect_unix(name, soon());
    const std::vector<std::byte> junk(5000, std::byte{0x41});
    ASSERT_TRUE(send_message(socket->get(), junk).ok());
    expect_dropped(socket->get());
  }
  {  // the right size with the wrong magic
    auto socket = connect_unix(name, soon());
    ExchangeHello hello;
    hello.magic = 1;
    ASSERT_TRUE(send_message(socket->get(), as_message(hello)).ok());
    expect_dropped(socket->get());
  }
  {  // the wrong secret, with a descriptor thrown in
    auto socket = connect_unix(name, soon());
    ASSERT_TRUE(send_message(socket->get(), as_message(ExchangeHello{})).ok());
    ExchangeChallenge challenge;
    ASSERT_TRUE(receive_message(socket->get(), as_buffer(challenge), nullptr, soon()).ok());
    ASSERT_TRUE(send_message(socket->get(), as_message(ExchangeProof{}), 0).ok());
    expect_dropped(socket->get());
  }
  {  // the service's own answer, reflected
    auto socket = connect_unix(name, soon());
    ASSERT_TRUE(send_message(socket->get(), as_message(ExchangeHello{})).ok());
    ExchangeChallenge challenge;
    ASSERT_TRUE(receive_message(socket->get(), as_buffer(challenge), nullptr, soon()).ok());
    ExchangeProof proof;
    proof.proof = challenge.proof;
    ASSERT_TRUE(send_message(socket->get(), as_message(proof)).ok());
    expect_dropped(socket->get());
  }
  ProcessInfo impostor = child.shown().info;
  impostor.secret[0] ^= 1;
  EXPECT_EQ(PeerProcess::connect(impostor, soon()).status().code(), Code::kNetwork);

  auto peer = PeerProcess::connect(child.shown().info, soon());
  ASSERT_TRUE(peer.ok()) << peer.status().to_string();
  EXPECT_TRUE((*peer)->segment(0, soon()).ok());
}

TEST(Exchange, StopsWithItsLastOwner) {
  uint64_t first = 0;
  {
    auto exchange = Exchange::acquire();
    ASSERT_TRUE(exchange.ok());
    first = (*exchange)->info().nonce;
    EXPECT_EQ((*Exchange::acquire())->info().nonce, first);
  }
  EXPECT_NE((*Exchange::acquire())->info().nonce, first);
}

TEST(Exchange, ReachesTheOwnProcessWithoutASocket) {
  auto exchange = Exchange::acquire();
  auto self = (*exchange)->peer((*exchange)->info(), soon());
  ASSERT_TRUE(self.ok());
  EXPECT_TRUE((*self)->is_self());
  auto block = Pool::process().allocate(64, Use::kUser);
  const auto at = Pool::process().locate(*block, 64);
  EXPECT_EQ(*(*self)->segment(at->segment, soon()) + at->offset, *block);
  EXPECT_TRUE(Pool::process().free(*block).ok());
}

TEST(Exchange, NobodyListens) {
  ProcessInfo nobody;
  nobody.nonce = 1;
  EXPECT_EQ(PeerProcess::connect(nobody, soon()).status().code(), Code::kNetwork);
}

}  // namespace
}  // namespace zbccl::memory
