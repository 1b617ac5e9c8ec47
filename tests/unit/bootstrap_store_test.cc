// What every Store promises, on the local store, the TCP store and a prefix over it.
#include "bootstrap_support.h"

namespace zbccl::bootstrap::test {
namespace {

// A store as one rank sees it: `connect` is called once for each rank.
struct Kind {
  const char* name;
  std::function<std::function<std::shared_ptr<Store>()>()> make;
};

std::function<std::shared_ptr<Store>()> tcp_maker() {
  auto server = std::make_shared<TestServer>(serve());
  return [server] {
    auto store = connect_tcp_store(server->id, soon());
    EXPECT_TRUE(store.ok()) << store.status().to_string();
    return *store;
  };
}

const Kind kKinds[] = {
    {"local",
     [] {
       auto store = make_local_store();
       return [store] { return store; };
     }},
    {"tcp", tcp_maker},
    {"prefix", [] { return [make = tcp_maker()] { return make_prefix_store(make(), "job 7/"); }; }},
};

class StoreTest : public testing::TestWithParam<Kind> {
 protected:
  std::function<std::shared_ptr<Store>()> connect_ = GetParam().make();
};

TEST_P(StoreTest, SetIsSeenByAll) {
  const auto writer = connect_();
  const auto reader = connect_();
  ASSERT_TRUE(writer->set("a", "1").ok());
  EXPECT_EQ(*reader->get("a", soon()), "1");
  ASSERT_TRUE(writer->set("a", "second").ok());
  EXPECT_EQ(*reader->get("a", soon()), "second");
}

TEST_P(StoreTest, ValuesMayBeEmptyOrBinary) {
  const auto store = connect_();
  const std::string binary("\0\xff\n/", 4);
  ASSERT_TRUE(store->set("empty", "").ok());
  ASSERT_TRUE(store->set(binary, binary).ok());
  EXPECT_EQ(*store->get("empty", soon()), "");
  EXPECT_EQ(*store->get(binary, soon()), binary);
}

TEST_P(StoreTest, GetReturnsManyInOrder) {
  const auto store = connect_();
  std::vector<std::string> keys;
  for (int i = 0; i < 300; ++i) {
    keys.push_back("key" + std::to_string(i));
    ASSERT_TRUE(store->set(keys.back(), std::to_string(i * i)).ok());
  }
  std::swap(keys[0], keys[299]);
  keys.push_back(keys[5]);
  const auto values = store->get(keys, soon());
  ASSERT_TRUE(values.ok());
  EXPECT_EQ((*values)[0], std::to_string(299 * 299));
  EXPECT_EQ((*values)[299], "0");
  EXPECT_EQ((*values)[300], "25");
}

TEST_P(StoreTest, GetOfNothingIsEmpty) {
  const auto values = connect_()->get(std::vector<std::string>{}, soon());
  ASSERT_TRUE(values.ok());
  EXPECT_TRUE(values->empty());
}

TEST_P(StoreTest, GetWaitsForEveryKey) {
  const auto reader = connect_();
  const auto writer = connect_();
  std::atomic<bool> done{false};
  std::thread waiting([&] {
    const auto values = reader->get(std::vector<std::string>{"x", "y", "z"}, soon());
    EXPECT_TRUE(values.ok()) << values.status().to_string();
    done = true;
  });
  for (const char* key : {"z", "x"}) {
    ASSERT_TRUE(writer->set(key, "v").ok());
    std::this_thread::sleep_for(Milliseconds(20));
    EXPECT_FALSE(done);
  }
  ASSERT_TRUE(writer->set("y", "v").ok());
  waiting.join();
  EXPECT_TRUE(done);
}

TEST_P(StoreTest, TimeoutNamesTheKeyAndLeavesTheStoreUsable) {
  const auto store = connect_();
  ASSERT_TRUE(store->set("there", "v").ok());
  for (int round = 0; round < 3; ++round) {
    const auto values =
        store->get(std::vector<std::string>{"there", "absent", "also"}, in(round * 20));
    ASSERT_FALSE(values.ok());
    EXPECT_EQ(values.status().code(), Code::kTimeout);
    EXPECT_NE(values.status().message().find("absent"), std::string::npos);
  }
  ASSERT_TRUE(store->set("absent", "now").ok());
  EXPECT_EQ(*store->get("absent", soon()), "now");
}

TEST_P(StoreTest, APassedDeadlineStillLooks) {
  const auto store = connect_();
  ASSERT_TRUE(store->set("there", "v").ok());
  EXPECT_EQ(*store->get("there", in(-5)), "v");
  EXPECT_EQ(store->get("absent", in(-5)).status().code(), Code::kTimeout);
}

TEST_P(StoreTest, NeverIsADeadline) {
  const auto reader = connect_();
  const auto writer = connect_();
  std::thread late([&] {
    std::this_thread::sleep_for(Milliseconds(30));
    EXPECT_TRUE(writer->set("late", "v").ok());
  });
  EXPECT_EQ(*reader->get("late", Deadline::never()), "v");
  late.join();
}

TEST_P(StoreTest, AddIsAtomic) {
  constexpr int kThreads = 8;
  constexpr int kRounds = 50;
  std::vector<std::atomic<int>> seen(kThreads * kRounds + 1);
  on_threads(kThreads, [&](int) {
    const auto store = connect_();
    for (int i = 0; i < kRounds; ++i) {
      const auto sum = store->add("count", 1);
      ASSERT_TRUE(sum.ok());
      ++seen[static_cast<size_t>(*sum)];
    }
  });
  for (size_t i = 1; i < seen.size(); ++i) EXPECT_EQ(seen[i], 1) << i;
  const auto store = connect_();
  EXPECT_EQ(*store->get("count", soon()), std::to_string(kThreads * kRounds));
  EXPECT_EQ(*store->add("count", -500), kThreads * kRounds - 500);
  EXPECT_EQ(*store->add("count", 0), kThreads * kRounds - 500);
}

TEST_P(StoreTest, AddWakesWhoeverWaits) {
  const auto reader = connect_();
  const auto writer = connect_();
  std::thread waiting([&] { EXPECT_EQ(*reader->get("n", soon()), "3"); });
  std::this_thread::sleep_for(Milliseconds(20));
  EXPECT_EQ(*writer->add("n", 3), 3);
  waiting.join();
}

TEST_P(StoreTest, AddRefusesText) {
  const auto store = connect_();
  ASSERT_TRUE(store->set("word", "12 apples").ok());
  EXPECT_EQ(store->add("word", 1).status().code(), Code::kInvalidUsage);
  ASSERT_TRUE(store->set("most", "9223372036854775807").ok());
  EXPECT_EQ(store->add("most", 1).status().code(), Code::kInvalidUsage);
  EXPECT_EQ(*store->get("word", soon()), "12 apples");
}

TEST_P(StoreTest, LimitsAreArguments) {
  const auto store = connect_();
  EXPECT_EQ(store->set("", "v").code(), Code::kInvalidArgument);
  EXPECT_EQ(store->set(std::string(kMaxKeyBytes + 1, 'k'), "v").code(), Code::kInvalidArgument);
  EXPECT_EQ(store->get("", soon()).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(store->add("", 1).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(store->set("k", std::string(kMaxValueBytes + 1, 'v')).code(), Code::kInvalidArgument);
  EXPECT_TRUE(store->set("k", "v").ok());
}

TEST_P(StoreTest, LargestValuePasses) {
  const auto writer = connect_();
  const auto reader = connect_();
  std::string value(kMaxValueBytes, 'v');
  for (size_t i = 0; i < value.size(); i += 4093) value[i] = static_cast<char>(i / 4093);
  ASSERT_TRUE(writer->set("large", value).ok());
  const auto got = reader->get(std::vector<std::string>{"large", "large"}, soon());
  ASSERT_TRUE(got.ok()) << got.status().to_string();
  EXPECT_TRUE((*got)[0] == value);
  EXPECT_TRUE((*got)[1] == value);
}

TEST_P(StoreTest, ManyRanksExchange) {
  constexpr int kRanks = 24;
  on_threads(kRanks, [&](int rank) {
    const auto store = connect_();
    for (int round = 0; round < 3; ++round) {
      const std::string name = "round" + std::to_string(round);
      const auto values = all_gather(*store, name, rank, kRanks, std::to_string(rank), soon());
      ASSERT_TRUE(values.ok()) << values.status().to_string();
      for (int r = 0; r < kRanks; ++r) {
        ASSERT_EQ((*values)[static_cast<size_t>(r)], std::to_string(r));
      }
    }
  });
}

TEST_P(StoreTest, OneObjectServesManyThreads) {
  const auto store = connect_();
  on_threads(8, [&](int i) {
    const std::string key = "own" + std::to_string(i);
    for (int round = 0; round < 20; ++round) {
      ASSERT_TRUE(store->set(key, std::to_string(round)).ok());
      ASSERT_EQ(*store->get(key, soon()), std::to_string(round));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Stores, StoreTest, testing::ValuesIn(kKinds),
                         [](const auto& kind) { return std::string(kind.param.name); });

TEST(PrefixStore, KeepsKeysApart) {
  const auto base = make_local_store();
  const auto one = make_prefix_store(base, "one/");
  const auto two = make_prefix_store(base, "two/");
  ASSERT_TRUE(one->set("k", "1").ok());
  ASSERT_TRUE(two->set("k", "2").ok());
  EXPECT_EQ(*one->get("k", soon()), "1");
  EXPECT_EQ(*base->get("two/k", soon()), "2");
}

TEST(AllGather, NamesWhoIsMissing) {
  const auto store = make_local_store();
  on_threads(2, [&](int i) {
    const auto values = all_gather(*store, "g", 2 * i, 4, "v", in(100));
    ASSERT_FALSE(values.ok());
    EXPECT_EQ(values.status().code(), Code::kTimeout);
    EXPECT_NE(values.status().message().find("ranks 1 and 3 of 4"), std::string::npos)
        << values.status().message();
  });
  EXPECT_EQ(all_gather(*store, "g", 4, 4, "v", in(1)).status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace zbccl::bootstrap::test
