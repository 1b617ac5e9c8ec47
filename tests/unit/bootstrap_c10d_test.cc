// The client of torch.distributed.TCPStore: against servers that speak garbage, and against a real
// one where ZBCCL_TEST_PYTHON names a Python that has PyTorch.

#include <cstring>

#include "bootstrap_fake_server.h"
#include "bootstrap_support.h"
#include "bootstrap_torch.h"

namespace zbccl::bootstrap::test {
namespace {

// The greeting: validate (1 + 4 bytes) and ping (1 + 4 bytes), of which the last 4 come back.
bool answer_greeting(int fd) {
  const std::string greeting = raw_receive(fd, 10);
  if (greeting.size() != 10) return false;
  EXPECT_EQ(greeting[0], 0);
  EXPECT_EQ(greeting.substr(1, 4), "\xCE\xF7\x85\x3C");
  EXPECT_EQ(greeting[5], 13);
  return raw_send(fd, greeting.substr(6));
}

uint64_t read_u64(int fd) {
  const std::string bytes = raw_receive(fd, 8);
  uint64_t value = 0;
  if (bytes.size() == 8) std::memcpy(&value, bytes.data(), 8);
  return value;
}

std::string u64(uint64_t value) {
  char bytes[8];
  std::memcpy(bytes, &value, 8);
  return {bytes, 8};
}

// Reads a request with a list of keys after its type; false at the end of the connection.
bool read_keys(int fd) {
  const uint64_t count = read_u64(fd);
  for (uint64_t i = 0; i < count; ++i) {
    const std::string key = raw_receive(fd, read_u64(fd));
    if (key.empty() || key[0] != '/') return false;
  }
  return count > 0;
}

// Greets well, tells each get that its keys are there, then says `values` as its answer.
std::function<void(int)> answer_gets_with(std::string values) {
  return [values = std::move(values)](int fd) {
    if (!answer_greeting(fd)) return;
    while (true) {
      const std::string type = raw_receive(fd, 1);
      if (type.empty() || !read_keys(fd)) return;
      if (type[0] == 6) raw_send(fd, std::string(1, '\0'));
      if (type[0] == 10) {
        raw_send(fd, values);
        return;
      }
    }
  };
}

Status get_from(uint16_t port, Deadline deadline = soon()) {
  auto store = connect_c10d_store("127.0.0.1", port, soon());
  EXPECT_TRUE(store.ok()) << store.status().to_string();
  return (*store)->get("key", deadline).status();
}

TEST(C10dStore, WhatIsNoTcpStoreIsToldAtOnce) {
  const FakeServer web([](int fd) {
    (void)raw_receive(fd, 10);
    raw_send(fd, "HTTP/1.1 400 Bad Request\r\n\r\n");
  });
  const auto store = connect_c10d_store("127.0.0.1", web.port(), soon());
  EXPECT_EQ(store.status().code(), Code::kInvalidUsage) << store.status().to_string();
}

TEST(C10dStore, NobodyIsATimeoutThatNamesTheAddress) {
  uint16_t port = 0;
  {
    port = FakeServer([](int) {}).port();
  }
  const auto store = connect_c10d_store("127.0.0.1", port, in(100));
  EXPECT_EQ(store.status().code(), Code::kTimeout);
  EXPECT_NE(store.status().message().find(std::to_string(port)), std::string::npos);
  EXPECT_EQ(connect_c10d_store("no-such-host.invalid", 1, in(50)).status().code(), Code::kTimeout);
}

TEST(C10dStore, ServerThatHangsUpIsATimeoutOfTheConnect) {
  const FakeServer rude([](int) {});
  EXPECT_EQ(connect_c10d_store("127.0.0.1", rude.port(), in(100)).status().code(), Code::kTimeout);
}

TEST(C10dStore, MalformedAnswersAreErrors) {
  for (const std::string& values :
       {u64(~uint64_t{0}), u64(uint64_t{1} << 40), u64(kMaxValueBytes + 1), u64(100) + "short",
        std::string("abc"), std::string()}) {
    const FakeServer server(answer_gets_with(values));
    EXPECT_EQ(get_from(server.port()).code(), Code::kNetwork) << values.size();
  }
}

TEST(C10dStore, MalformedPartsAreErrors) {
  for (const std::string text :
       {"", "1", "1 2", "1 1 99999999999", "-1 -1 -1", "1 7 10", "1 1 5 6", "x y z"}) {
    const std::string mark = "\x01zbccl parts\x01" + text;
    const FakeServer server(answer_gets_with(u64(mark.size()) + mark));
    EXPECT_EQ(get_from(server.port()).code(), Code::kNetwork) << text;
  }
}

TEST(C10dStore, WrongAnswerToAWaitIsAnError) {
  const FakeServer server([](int fd) {
    if (!answer_greeting(fd)) return;
    (void)raw_receive(fd, 1);
    if (read_keys(fd)) raw_send(fd, "\x42");
    (void)closed_by_peer(fd);
  });
  EXPECT_EQ(get_from(server.port()).code(), Code::kNetwork);
}

TEST(C10dStore, ServerThatDiesIsANetworkError) {
  const FakeServer server([](int fd) {
    if (answer_greeting(fd)) (void)raw_receive(fd, 4);
  });
  auto store = *connect_c10d_store("127.0.0.1", server.port(), soon());
  const Status status = store->add("n", 1).status();
  EXPECT_EQ(status.code(), Code::kNetwork) << status.to_string();
  EXPECT_NE(status.message().find(store->describe()), std::string::npos) << status.message();
}

// --- Against PyTorch ---------------------------------------------------------------------------

class TorchTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const char* python = std::getenv("ZBCCL_TEST_PYTHON");
    if (python == nullptr || *python == '\0') {
      GTEST_SKIP() << "ZBCCL_TEST_PYTHON does not name a Python that has PyTorch";
    }
    // PyTorch takes seconds to start: one server of each kind for all tests, each with keys of its
    // own.
    auto& server = servers_[GetParam()];
    if (server == nullptr) server = std::make_unique<TorchServer>(python, GetParam());
    server_ = server.get();
    if (!server_->runs()) GTEST_SKIP() << python << " cannot import torch.distributed";
  }
  std::shared_ptr<Store> connect() {
    auto store = connect_c10d_store("127.0.0.1", server_->port(), soon());
    EXPECT_TRUE(store.ok()) << store.status().to_string();
    return *store;
  }
  static void TearDownTestSuite() { servers_.clear(); }
  TorchServer* server_ = nullptr;

 private:
  static inline std::map<std::string, std::unique_ptr<TorchServer>> servers_;
};

TEST_P(TorchTest, BothSidesSeeTheSameKeys) {
  const auto store = connect();
  EXPECT_EQ(*store->get("from torch", soon()), "good day");
  EXPECT_EQ(*store->add("torch count", 2), 42);
  EXPECT_EQ(*store->get("torch count", soon()), "42");
  ASSERT_TRUE(store->set("from zbccl", "good evening").ok());
  EXPECT_EQ(server_->read("from zbccl"), "good evening");
}

TEST_P(TorchTest, TimeoutNamesTheKeyAndLeavesTheStoreUsable) {
  const auto store = connect();
  ASSERT_TRUE(store->set("a", "1").ok());
  ASSERT_TRUE(store->set("b", "2").ok());
  for (int round = 0; round < 4; ++round) {
    const auto values =
        store->get(std::vector<std::string>{"a", "b", "absent", "a", "gone"}, in(round * 50 - 50));
    ASSERT_EQ(values.status().code(), Code::kTimeout) << values.status().to_string();
    EXPECT_NE(values.status().message().find("absent"), std::string::npos)
        << values.status().message();
    EXPECT_EQ(*store->get("a", soon()), "1");
  }
  EXPECT_EQ(*store->get("a", in(-10)), "1");
}

TEST_P(TorchTest, WaitsForLateKeysThoughAWaitWasCancelled) {
  const auto reader = connect();
  const auto writer = connect();
  EXPECT_EQ(reader->get("late", in(20)).status().code(), Code::kTimeout);
  std::thread late([&] {
    std::this_thread::sleep_for(Milliseconds(100));
    EXPECT_TRUE(writer->set("late", "1").ok());
    EXPECT_TRUE(writer->set("later", "2").ok());
  });
  const auto values = reader->get(std::vector<std::string>{"later", "late", "later"}, soon());
  late.join();
  ASSERT_TRUE(values.ok()) << values.status().to_string();
  EXPECT_EQ(*values, (std::vector<std::string>{"2", "1", "2"}));
}

TEST_P(TorchTest, LargeAndOddValuesPass) {
  const auto writer = connect();
  const auto reader = connect();
  const std::string mark("\x01zbccl parts\x01");
  std::vector<std::string> values{"",
                                  std::string("\0\xff", 2),
                                  mark,
                                  mark + "1 1 1",
                                  std::string(size_t{9} << 20, 'n'),
                                  std::string(kMaxValueBytes, 'm')};
  for (size_t i = 0; i < values[5].size(); i += 4093) values[5][i] = static_cast<char>(i / 4093);
  std::vector<std::string> keys;
  for (size_t i = 0; i < values.size(); ++i) {
    keys.push_back("value" + std::to_string(i));
    ASSERT_TRUE(writer->set(keys[i], values[i]).ok());
  }
  const auto got = reader->get(keys, soon());
  ASSERT_TRUE(got.ok()) << got.status().to_string();
  for (size_t i = 0; i < values.size(); ++i) EXPECT_TRUE((*got)[i] == values[i]) << i;
  ASSERT_TRUE(writer->set(keys[5], "small now").ok());
  EXPECT_EQ(*writer->get(keys[5], soon()), "small now");
}

TEST_P(TorchTest, RanksJoin) {
  constexpr int kRanks = 16;
  on_threads(kRanks, [&](int rank) {
    const auto store = make_prefix_store(connect(), "zbccl/run/0/");
    const auto hellos = join(*store, "job", rank, kRanks, std::to_string(rank), soon());
    ASSERT_TRUE(hellos.ok()) << hellos.status().to_string();
    for (int r = 0; r < kRanks; ++r) {
      EXPECT_EQ((*hellos)[static_cast<size_t>(r)], std::to_string(r));
    }
    const auto values = all_gather(*store, "g", rank, kRanks, std::to_string(2 * rank), soon());
    ASSERT_TRUE(values.ok());
    EXPECT_EQ(values->back(), std::to_string(2 * (kRanks - 1)));
  });
}

TEST_P(TorchTest, JoinReportsConflictsAndMissingRanks) {
  on_threads(3, [&](int i) {
    const auto store = connect();
    const auto conflict = join(*store, "twice", i == 2 ? 1 : i, 3, "", soon());
    EXPECT_EQ(conflict.status().code(), Code::kInvalidUsage) << conflict.status().to_string();
    const auto missing = join(*store, "missing", i, 4, "", in(300));
    EXPECT_EQ(missing.status().code(), Code::kTimeout);
    EXPECT_NE(missing.status().message().find("rank 3 of 4"), std::string::npos)
        << missing.status().message();
  });
}

TEST_P(TorchTest, EnvironmentOfTorchrun) {
  const Environment agent({{"MASTER_ADDR", "127.0.0.1"},
                           {"MASTER_PORT", std::to_string(server_->port())},
                           {"RANK", "1"},
                           {"WORLD_SIZE", "2"},
                           {"LOCAL_RANK", "1"},
                           {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                           {"TORCHELASTIC_RUN_ID", "r7"},
                           {"TORCHELASTIC_RESTART_COUNT", "3"},
                           {"ZBCCL_RANK", std::nullopt},
                           {"ZBCCL_WORLD_SIZE", std::nullopt},
                           {"ZBCCL_UNIQUE_ID", std::nullopt}});
  const auto found = from_environment(soon());
  ASSERT_TRUE(found.ok()) << found.status().to_string();
  EXPECT_EQ(found->source, "torchrun");
  EXPECT_EQ(found->rank, 1);
  EXPECT_EQ(found->nranks, 2);
  EXPECT_EQ(found->local_rank, 1);
  ASSERT_TRUE(found->store->set("k", "v").ok());
  // The last number counts the calls of this process.
  const auto all = connect();
  std::string key;
  for (int turn = 1; key.empty() && turn < 10; ++turn) {
    const std::string candidate = "zbccl/r7/3/zbccl/" + std::to_string(turn) + "/k";
    if (all->get(candidate, in(0)).ok()) key = candidate;
  }
  ASSERT_FALSE(key.empty());
  EXPECT_EQ(server_->read(key), "v");
}

INSTANTIATE_TEST_SUITE_P(Servers, TorchTest, testing::Values("libuv", "plain"),
                         [](const auto& kind) { return std::string(kind.param); });

}  // namespace
}  // namespace zbccl::bootstrap::test
