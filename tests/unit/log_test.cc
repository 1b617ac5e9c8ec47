#include "base/log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace zbccl::log {
namespace {

class LogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ =
        std::filesystem::temp_directory_path() / ("zbccl_log_test." + std::to_string(getpid()));
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    configure(nullptr, nullptr, nullptr);
  }
  void TearDown() override {
    configure(nullptr, nullptr, nullptr);
    std::filesystem::remove_all(directory_);
  }
  static void set(const char* name, const char* value) {
    value != nullptr ? setenv(name, value, 1) : unsetenv(name);
  }
  void configure(const char* level, const char* subsys, const char* file) {
    set("ZBCCL_DEBUG", level);
    set("ZBCCL_DEBUG_SUBSYS", subsys);
    set("ZBCCL_DEBUG_FILE", file != nullptr ? (directory_ / file).c_str() : nullptr);
    reconfigure();
  }
  std::string read(const std::string& file) const {
    std::ifstream stream(directory_ / file);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  std::filesystem::path directory_;
};

TEST_F(LogTest, warnings_are_on_by_default) {
  EXPECT_TRUE(enabled(Level::kWarn, Subsys::kInit));
  EXPECT_FALSE(enabled(Level::kInfo, Subsys::kInit));
  EXPECT_FALSE(enabled(Level::kTrace, Subsys::kInit));
}

TEST_F(LogTest, levels) {
  const char* const names[] = {"NONE", "VERSION", "WARN", "INFO", "TRACE"};
  for (int set_to = 0; set_to < 5; ++set_to) {
    configure(names[set_to], nullptr, nullptr);
    EXPECT_STREQ(level_name(static_cast<Level>(set_to)), names[set_to]);
    for (int level = 1; level < 5; ++level) {
      EXPECT_EQ(enabled(static_cast<Level>(level), Subsys::kColl), level <= set_to)
          << names[level] << " at " << names[set_to];
    }
  }
  configure("info", nullptr, nullptr);
  EXPECT_TRUE(enabled(Level::kInfo, Subsys::kColl)) << "in any case";
}

TEST_F(LogTest, subsystems_filter_all_but_warnings) {
  configure("TRACE", "NET,mem", nullptr);
  EXPECT_TRUE(enabled(Level::kInfo, Subsys::kNet));
  EXPECT_TRUE(enabled(Level::kTrace, Subsys::kMem));
  EXPECT_FALSE(enabled(Level::kInfo, Subsys::kInit));
  EXPECT_TRUE(enabled(Level::kWarn, Subsys::kInit));
  configure("INFO", "^NET,COLL", nullptr);
  EXPECT_FALSE(enabled(Level::kInfo, Subsys::kNet));
  EXPECT_FALSE(enabled(Level::kInfo, Subsys::kColl));
  EXPECT_TRUE(enabled(Level::kInfo, Subsys::kInit));
  for (const char* all : {"ALL", ""}) {
    configure("INFO", all, nullptr);
    for (unsigned i = 0; i < static_cast<unsigned>(Subsys::kCount); ++i) {
      EXPECT_TRUE(enabled(Level::kInfo, static_cast<Subsys>(i)));
      EXPECT_STRNE(subsys_name(static_cast<Subsys>(i)), "");
    }
  }
}

TEST_F(LogTest, a_line_says_who_and_what) {
  configure("INFO", nullptr, "lines");
  info(Subsys::kInit, "rank {} of {}", 2, 8);
  warn(Subsys::kMem, "low");
  trace(Subsys::kMem, "not written");
  const std::string text = read("lines");
  const std::string who = zbccl::format(":{}:{}", getpid(), gettid());
  const size_t end = text.find('\n');
  ASSERT_NE(end, std::string::npos);
  EXPECT_EQ(text.substr(text.find(':'), end - text.find(':')),
            who + " zbccl INFO INIT rank 2 of 8");
  const std::string second = text.substr(end + 1);
  ASSERT_NE(second.find(':'), std::string::npos);
  EXPECT_EQ(second.substr(second.find(':')), who + " zbccl WARN MEM low\n");
}

TEST_F(LogTest, file_names_expand) {
  configure("INFO", nullptr, "a.%h.%p.100%%");
  info(Subsys::kInit, "here");
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  const std::string name = std::string(host).substr(0, std::string(host).find('.'));
  EXPECT_NE(read("a." + name + "." + std::to_string(getpid()) + ".100%").find("here"),
            std::string::npos);
}

TEST_F(LogTest, appends_and_reconfigures) {
  configure("INFO", nullptr, "one");
  info(Subsys::kInit, "first");
  configure("INFO", nullptr, "two");
  info(Subsys::kInit, "second");
  configure("INFO", nullptr, "one");
  info(Subsys::kInit, "third");
  const std::string one = read("one");
  EXPECT_NE(one.find("first"), std::string::npos);
  EXPECT_NE(one.find("third"), std::string::npos);
  EXPECT_EQ(one.find("second"), std::string::npos);
  EXPECT_NE(read("two").find("second"), std::string::npos);
}

TEST_F(LogTest, goes_to_standard_error_and_says_why_the_file_did_not_open) {
  ::testing::internal::CaptureStderr();
  configure("WARN", nullptr, ".");  // a directory
  warn(Subsys::kFault, "still heard");
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(text.find("WARN ENV ZBCCL_DEBUG_FILE: "), std::string::npos) << text;
  EXPECT_NE(text.find("WARN FAULT still heard"), std::string::npos) << text;
}

TEST_F(LogTest, an_unknown_level_is_reported_and_means_the_default) {
  configure("LOUD", nullptr, "lines");
  EXPECT_TRUE(enabled(Level::kWarn, Subsys::kInit));
  EXPECT_FALSE(enabled(Level::kInfo, Subsys::kInit));
  EXPECT_NE(read("lines").find("ZBCCL_DEBUG is \"LOUD\", expected choice in "
                               "NONE|VERSION|WARN|INFO|TRACE; using the default \"WARN\""),
            std::string::npos)
      << read("lines");
}

// Lines of several threads do not mix, also while the target changes.
TEST_F(LogTest, threads_write_whole_lines) {
  configure("INFO", nullptr, "lines");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 200; ++i) info(Subsys::kColl, "thread {} line {} end", t, i);
    });
  }
  for (int i = 0; i < 5; ++i) configure("INFO", nullptr, "lines");
  for (std::thread& thread : threads) thread.join();
  const std::string text = read("lines");
  std::vector<int> next(4);
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    ASSERT_NE(end, std::string::npos);
    const std::string line = text.substr(at, end - at);
    const size_t message = line.find(" zbccl INFO COLL thread ");
    ASSERT_NE(message, std::string::npos) << line;
    int thread = -1;
    int number = -1;
    char last[8] = {};
    ASSERT_EQ(std::sscanf(line.c_str() + message, " zbccl INFO COLL thread %d line %d %3s", &thread,
                          &number, last),
              3)
        << line;
    ASSERT_EQ(std::string(last), "end") << line;
    ASSERT_TRUE(thread >= 0 && thread < 4) << line;
    EXPECT_EQ(number, next[static_cast<size_t>(thread)]++) << line;
    at = end + 1;
  }
  EXPECT_EQ(next, std::vector<int>(4, 200));
}

}  // namespace
}  // namespace zbccl::log
