#include "base/env.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "base/log.h"

namespace zbccl::env {
namespace {

// Clears every ZBCCL_* variable, sends the log to a file, and restores nothing: each case starts
// from the same state.
class EnvTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const Variable& v : variables()) unsetenv(v.name);
    path_ = std::filesystem::temp_directory_path() /
            ("zbccl_env_test." + std::to_string(getpid()) + ".log");
    std::filesystem::remove(path_);
    setenv("ZBCCL_DEBUG_FILE", path_.c_str(), 1);
    log::reconfigure();
  }
  void TearDown() override {
    unsetenv("ZBCCL_DEBUG_FILE");
    log::reconfigure();
    std::filesystem::remove(path_);
  }
  std::string logged() const {
    std::ifstream file(path_);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static size_t times(const std::string& text, const std::string& part) {
    size_t count = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
      ++count;
    return count;
  }

  std::filesystem::path path_;
};

TEST_F(EnvTest, the_registry_is_sound) {
  std::set<std::string> names;
  std::string previous;
  for (const Variable& v : variables()) {
    EXPECT_TRUE(std::string(v.name).starts_with("ZBCCL_")) << v.name;
    EXPECT_TRUE(names.insert(v.name).second) << v.name << " stands twice";
    EXPECT_LT(previous, v.name) << "sorted, for the docs";
    previous = v.name;
    EXPECT_NE(std::string(v.text), "") << v.name;
    EXPECT_EQ(std::string(v.text).back(), '.') << v.name;
    EXPECT_STRNE(type_name(v.type), "unknown");
    // A default passes its own check.
    setenv(v.name, v.default_value, 1);
    EXPECT_EQ(complaint(v.name), "");
    unsetenv(v.name);
    EXPECT_FALSE(is_set(v.name));
    EXPECT_EQ(get_string(v.name), v.default_value);
  }
}

TEST_F(EnvTest, integers) {
  EXPECT_EQ(get_integer("ZBCCL_RANK"), -1);
  setenv("ZBCCL_RANK", "7", 1);
  EXPECT_EQ(get_integer("ZBCCL_RANK"), 7);
  EXPECT_TRUE(is_set("ZBCCL_RANK"));
  for (const char* limit : {"-1", "0", "65535"}) {
    setenv("ZBCCL_RANK", limit, 1);
    EXPECT_EQ(get_integer("ZBCCL_RANK"), std::atoi(limit));
  }
  for (const char* wrong :
       {"-2", "65536", "x", "7x", "7 ", " 7", "7.0", "0x7", "7K", "99999999999999999999"}) {
    setenv("ZBCCL_RANK", wrong, 1);
    EXPECT_EQ(get_integer("ZBCCL_RANK"), -1) << wrong;
    EXPECT_NE(complaint("ZBCCL_RANK"), "") << wrong;
  }
  EXPECT_EQ(get_integer("ZBCCL_NO_SUCH_THING"), 0);
}

TEST_F(EnvTest, empty_is_unset) {
  setenv("ZBCCL_RANK", "", 1);
  EXPECT_FALSE(is_set("ZBCCL_RANK"));
  EXPECT_EQ(get_integer("ZBCCL_RANK"), -1);
  EXPECT_EQ(complaint("ZBCCL_RANK"), "");
}

TEST_F(EnvTest, booleans) {
  EXPECT_TRUE(get_bool("ZBCCL_CMA"));
  for (const char* off : {"0", "false", "no", "off"}) {
    setenv("ZBCCL_CMA", off, 1);
    EXPECT_FALSE(get_bool("ZBCCL_CMA")) << off;
  }
  for (const char* on : {"1", "true", "yes", "on"}) {
    setenv("ZBCCL_CMA", on, 1);
    EXPECT_TRUE(get_bool("ZBCCL_CMA")) << on;
  }
  setenv("ZBCCL_CMA", "2", 1);
  EXPECT_TRUE(get_bool("ZBCCL_CMA"));
  EXPECT_NE(complaint("ZBCCL_CMA"), "");
}

TEST_F(EnvTest, choices_in_any_case) {
  EXPECT_EQ(get_string("ZBCCL_HOST_WAIT"), "auto");
  setenv("ZBCCL_HOST_WAIT", "spin", 1);
  EXPECT_EQ(get_string("ZBCCL_HOST_WAIT"), "spin");
  setenv("ZBCCL_HOST_WAIT", "SLEEP", 1);
  EXPECT_EQ(get_string("ZBCCL_HOST_WAIT"), "sleep");
  for (const char* wrong : {"spi", "spin|sleep", "spins", "|"}) {
    setenv("ZBCCL_HOST_WAIT", wrong, 1);
    EXPECT_EQ(get_string("ZBCCL_HOST_WAIT"), "auto") << wrong;
  }
}

TEST_F(EnvTest, sizes_take_suffixes) {
  const std::pair<const char*, int64_t> cases[] = {
      {"0", 0}, {"1", 1}, {"3K", 3 << 10}, {"2M", 2 << 20}, {"1G", 1 << 30}, {"1T", 1LL << 40}};
  for (const auto& [text, bytes] : cases) {
    setenv("ZBCCL_POOL_KEEP", text, 1);
    EXPECT_EQ(get_integer("ZBCCL_POOL_KEEP"), bytes) << text;
  }
  for (const char* wrong : {"2T", "-1", "1KB", "K", "1 K", "9223372036854775807T", "1m"}) {
    setenv("ZBCCL_POOL_KEEP", wrong, 1);
    EXPECT_EQ(get_integer("ZBCCL_POOL_KEEP"), 64 << 20) << wrong;
  }
}

TEST_F(EnvTest, durations_take_suffixes) {
  EXPECT_EQ(get_integer("ZBCCL_TIMEOUT"), 600'000);
  const std::pair<const char*, int64_t> cases[] = {
      {"250", 250}, {"250ms", 250}, {"10s", 10'000}, {"5m", 300'000}, {"24h", 86'400'000}};
  for (const auto& [text, ms] : cases) {
    setenv("ZBCCL_TIMEOUT", text, 1);
    EXPECT_EQ(get_integer("ZBCCL_TIMEOUT"), ms) << text;
  }
  for (const char* wrong : {"0", "25h", "-1s", "10sec", "s"}) {
    setenv("ZBCCL_TIMEOUT", wrong, 1);
    EXPECT_EQ(get_integer("ZBCCL_TIMEOUT"), 600'000) << wrong;
  }
}

TEST_F(EnvTest, an_invalid_value_warns_once_and_says_what_is_expected) {
  setenv("ZBCCL_WORLD_SIZE", "many", 1);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(get_integer("ZBCCL_WORLD_SIZE"), -1);
  const std::string text = logged();
  EXPECT_EQ(times(text, "ZBCCL_WORLD_SIZE"), 1U) << text;
  EXPECT_NE(text.find("WARN ENV ZBCCL_WORLD_SIZE is \"many\", expected integer in -1..65536; using "
                      "the default \"-1\""),
            std::string::npos)
      << text;
  setenv("ZBCCL_WORLD_SIZE", "more", 1);
  EXPECT_EQ(get_integer("ZBCCL_WORLD_SIZE"), -1);
  EXPECT_EQ(times(logged(), "ZBCCL_WORLD_SIZE is"), 2U);
}

TEST_F(EnvTest, nearest_name) {
  EXPECT_EQ(nearest("ZBCCL_TIMOUT"), "ZBCCL_TIMEOUT");
  EXPECT_EQ(nearest("ZBCCL_DEBUG_SUBSYSTEM"), "ZBCCL_DEBUG_SUBSYS");
  EXPECT_EQ(nearest("ZBCCL_WORLDSIZE"), "ZBCCL_WORLD_SIZE");
  for (const Variable& v : variables()) EXPECT_EQ(nearest(v.name), v.name);
}

TEST_F(EnvTest, unknown_names_warn_once) {
  setenv("ZBCCL_TIMOUT", "5s", 1);
  setenv("XZBCCL_TIMOUT", "5s", 1);
  warn_unknown();
  warn_unknown();
  unsetenv("ZBCCL_TIMOUT");
  unsetenv("XZBCCL_TIMOUT");
  const std::string text = logged();
  EXPECT_EQ(times(text, "TIMOUT"), 1U) << text;
  EXPECT_NE(text.find("WARN ENV ZBCCL_TIMOUT is not a variable of zbccl; did you mean "
                      "ZBCCL_TIMEOUT?"),
            std::string::npos)
      << text;
}

TEST_F(EnvTest, json_lists_every_variable) {
  setenv("ZBCCL_TIMEOUT", "30s", 1);
  setenv("ZBCCL_RANK", "wrong", 1);
  const auto list = nlohmann::json::parse(to_json());
  ASSERT_EQ(list.size(), variables().size());
  for (size_t i = 0; i < list.size(); ++i) {
    const Variable& v = variables()[i];
    EXPECT_EQ(list[i].at("name"), v.name);
    EXPECT_EQ(list[i].at("type"), type_name(v.type));
    EXPECT_EQ(list[i].at("default"), v.default_value);
    EXPECT_EQ(list[i].at("range"), v.range);
    EXPECT_EQ(list[i].at("text"), v.text);
    EXPECT_EQ(list[i].at("set"), is_set(v.name));
    const std::string name = v.name;
    const std::string value = list[i].at("value");
    EXPECT_EQ(value, name == "ZBCCL_TIMEOUT" ? "30s" : get_string(v.name));
    EXPECT_NE(value, "wrong");
  }
}

TEST_F(EnvTest, json_hides_the_secret_and_takes_any_bytes) {
  setenv("ZBCCL_UNIQUE_ID", "127.0.0.1:1/c0ffee", 1);
  setenv("ZBCCL_HOST_ID", "caf\xff", 1);
  const std::string text = to_json();
  EXPECT_EQ(text.find("c0ffee"), std::string::npos);
  EXPECT_NE(text.find("(hidden)"), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(text).size(), variables().size());
}

}  // namespace
}  // namespace zbccl::env
