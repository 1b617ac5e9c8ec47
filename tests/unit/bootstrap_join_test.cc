// The join: agreement, and a clear error on every rank when there is none.
#include "bootstrap/join_entry.h"
#include "bootstrap_support.h"
#include "zbccl/version.h"

namespace zbccl::bootstrap::test {
namespace {

// The bound that is promised for errors that every rank is to learn.
constexpr int kPromptMs = 2'000;

struct Member {
  int rank;
  int nranks;
};

// Every member joins on a thread of its own, with a deadline far beyond the promised bound.
std::vector<Joined> join_all(const std::function<std::shared_ptr<Store>()>& connect,
                             const std::vector<Member>& members, int deadline_ms = 60'000) {
  std::vector<std::optional<Joined>> results(members.size());
  on_threads(static_cast<int>(members.size()), [&](int i) {
    const Member& member = members[static_cast<size_t>(i)];
    const auto store = connect();
    results[static_cast<size_t>(i)] = join(*store, "job", member.rank, member.nranks,
                                           "hello " + std::to_string(member.rank), in(deadline_ms));
  });
  std::vector<Joined> joined;
  for (auto& result : results) joined.push_back(std::move(*result));
  return joined;
}

class JoinTest : public testing::Test {
 protected:
  TestServer server_ = serve();
  std::function<std::shared_ptr<Store>()> connect_ = [this] {
    return *connect_tcp_store(server_.id, soon());
  };

  void expect_error_everywhere(const std::vector<Member>& members, Code code,
                               const std::string& text) {
    const auto start = Clock::now();
    for (const Joined& result : join_all(connect_, members)) {
      ASSERT_FALSE(result.ok());
      EXPECT_EQ(result.status().code(), code) << result.status().to_string();
      EXPECT_NE(result.status().message().find(text), std::string::npos)
          << result.status().message();
    }
    EXPECT_LT(since(start).count(), kPromptMs);
  }
};

TEST_F(JoinTest, EveryoneGetsEveryHello) {
  for (const int nranks : {1, 2, 3, 8}) {
    TestServer server = serve();
    std::vector<Member> members;
    for (int rank = 0; rank < nranks; ++rank) members.push_back({rank, nranks});
    const auto connect = [&] { return *connect_tcp_store(server.id, soon()); };
    for (const Joined& result : join_all(connect, members)) {
      ASSERT_TRUE(result.ok()) << result.status().to_string();
      for (int rank = 0; rank < nranks; ++rank) {
        EXPECT_EQ((*result)[static_cast<size_t>(rank)], "hello " + std::to_string(rank));
      }
    }
  }
}

TEST_F(JoinTest, WorksInAProcess) {
  const auto store = make_local_store();
  std::vector<Member> members;
  for (int rank = 0; rank < 5; ++rank) members.push_back({rank, 5});
  for (const Joined& result : join_all([&] { return store; }, members)) {
    EXPECT_TRUE(result.ok()) << result.status().to_string();
  }
}

TEST_F(JoinTest, SixtyFourRanks) {
  std::vector<Member> members;
  for (int rank = 0; rank < 64; ++rank) members.push_back({rank, 64});
  const auto start = Clock::now();
  for (const Joined& result : join_all(connect_, members)) {
    ASSERT_TRUE(result.ok()) << result.status().to_string();
    ASSERT_EQ(result->size(), 64U);
  }
  RecordProperty("milliseconds", static_cast<int>(since(start).count()));
}

TEST_F(JoinTest, DifferentWorldSizes) {
  expect_error_everywhere({{0, 4}, {1, 4}, {2, 5}, {3, 4}}, Code::kInvalidUsage,
                          "start every rank with the same world size");
}

TEST_F(JoinTest, DifferentWorldSizesWithRanksThatNeverCome) {
  expect_error_everywhere({{0, 8}, {1, 9}}, Code::kInvalidUsage,
                          "start every rank with the same world size");
}

TEST_F(JoinTest, RankTwice) {
  expect_error_everywhere({{0, 4}, {1, 4}, {1, 4}, {3, 4}}, Code::kInvalidUsage,
                          "rank 1 came twice");
}

TEST_F(JoinTest, RankOutOfRange) {
  expect_error_everywhere({{0, 3}, {1, 3}, {3, 3}}, Code::kInvalidUsage, "outside [0, 3)");
}

TEST_F(JoinTest, NegativeRankAndNoRanks) {
  expect_error_everywhere({{-1, 2}, {0, 2}}, Code::kInvalidUsage, "calls itself -1");
  const auto store = make_local_store();
  const auto nobody = join(*store, "none", 0, 0, "", in(50));
  EXPECT_EQ(nobody.status().code(), Code::kInvalidUsage);
}

TEST_F(JoinTest, DifferentLibraryVersion) {
  const auto other = connect_();
  JoinEntry entry;
  entry.library_version = ZBCCL_VERSION_CODE + 100;
  entry.rank = 2;
  entry.nranks = 3;
  ASSERT_TRUE(
      other->set("job/entry/" + std::to_string(*other->add("job/count", 1)), encode_entry(entry))
          .ok());
  expect_error_everywhere({{0, 3}, {1, 3}}, Code::kVersionMismatch, "use the same version");
  EXPECT_EQ(parse_outcome(*other->get("job/outcome", soon())).code(), Code::kVersionMismatch);
}

TEST_F(JoinTest, EntryOfAnUnknownFormat) {
  for (const std::string& bytes : {std::string("\x07\0\0\0future", 10), std::string("x")}) {
    TestServer server = serve();
    const auto connect = [&] { return *connect_tcp_store(server.id, soon()); };
    const auto other = connect();
    ASSERT_EQ(*other->add("job/count", 1), 1);
    ASSERT_TRUE(other->set("job/entry/1", bytes).ok());
    for (const Joined& result : join_all(connect, {{0, 3}, {1, 3}})) {
      EXPECT_EQ(result.status().code(), Code::kVersionMismatch) << result.status().to_string();
    }
  }
}

TEST_F(JoinTest, MissingRanksAreNamedAndLateOnesLearnOfIt) {
  const auto start = Clock::now();
  for (const Joined& result : join_all(connect_, {{0, 5}, {2, 5}, {4, 5}}, 300)) {
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.status().code(), Code::kTimeout);
    EXPECT_NE(result.status().message().find("ranks 1 and 3 of 5 never came"), std::string::npos)
        << result.status().message();
  }
  EXPECT_GE(since(start).count(), 300);

  const auto late_start = Clock::now();
  for (const Joined& result : join_all(connect_, {{1, 5}, {3, 5}})) {
    EXPECT_EQ(result.status().code(), Code::kTimeout) << result.status().to_string();
  }
  EXPECT_LT(since(late_start).count(), kPromptMs);
}

// A rank that counted itself and died before it wrote its entry keeps nobody past the deadline, and
// a conflict among the others is still reported at once.
TEST_F(JoinTest, RankThatDiesBetweenItsCountAndItsEntry) {
  ASSERT_EQ(*connect_()->add("job/count", 1), 1);
  for (const Joined& result : join_all(connect_, {{0, 3}, {1, 3}}, 300)) {
    EXPECT_EQ(result.status().code(), Code::kTimeout) << result.status().to_string();
    EXPECT_NE(result.status().message().find("rank 2 of 3 never came"), std::string::npos)
        << result.status().message();
  }
}

TEST_F(JoinTest, OutcomeOfAnotherReachesARankThatWaitsForAnEntry) {
  const auto store = connect_();
  ASSERT_EQ(*store->add("job/count", 1), 1);
  const auto start = Clock::now();
  std::thread decider([&] {
    std::this_thread::sleep_for(Milliseconds(150));
    const auto other = connect_();
    EXPECT_EQ(*other->add("job/decided", 1), 1);
    EXPECT_TRUE(
        other->set("job/outcome", encode_outcome(error(Code::kInvalidUsage, "a conflict"))).ok());
  });
  const auto result = join(*store, "job", 0, 2, "", soon());
  decider.join();
  EXPECT_EQ(result.status().message(), "a conflict");
  EXPECT_LT(since(start).count(), kPromptMs);
}

TEST_F(JoinTest, OneRankTooManyHarmsNobody) {
  for (const Joined& result : join_all(connect_, {{0, 2}, {1, 2}})) EXPECT_TRUE(result.ok());
  const auto start = Clock::now();
  const auto extra = join(*connect_(), "job", 1, 2, "", soon());
  EXPECT_EQ(extra.status().code(), Code::kInvalidUsage);
  EXPECT_LT(since(start).count(), kPromptMs);
}

// Whatever the order of arrival, those within the world size agree on one outcome.
TEST_F(JoinTest, OutcomeIsTheSameForAllUnderRaces) {
  for (int round = 0; round < 30; ++round) {
    const auto store = make_local_store();
    const auto results = join_all([&] { return store; }, {{0, 3}, {1, 3}, {2, 3}, {2, 3}});
    // Either the surplus rank came last and the job is complete without it, or nobody joined.
    const auto joined = std::count_if(results.begin(), results.end(),
                                      [](const Joined& result) { return result.ok(); });
    EXPECT_TRUE(joined == 0 || joined == 3) << joined;
  }
}

TEST_F(JoinTest, DeadlineThatRacesWithTheLastRank) {
  for (int round = 0; round < 20; ++round) {
    const auto store = make_local_store();
    std::optional<Joined> first;
    std::thread early([&] { first = join(*store, "job", 0, 2, "", in(5)); });
    std::this_thread::sleep_for(std::chrono::microseconds(4500 + 50 * round));
    const auto second = join(*store, "job", 1, 2, "", soon());
    early.join();
    EXPECT_EQ(first->ok(), second.ok());
  }
}

}  // namespace
}  // namespace zbccl::bootstrap::test
