// The ways into programs that were linked to NCCL: preloaded, by LD_AUDIT, by the search path.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <string>

#include "support/job.h"

namespace zbccl::test {
namespace {

struct Output {
  int status = -1;
  std::string text;
};

Output ask(const std::string& environment) {
  const std::string command =
      "env -u ZBCCL_NCCL_LIBRARY " + environment + " " ZBCCL_TEST_ASKER " 2>&1";
  Output output;
  FILE* const pipe = popen(command.c_str(), "r");  // NOLINT: the command is this file's
  if (pipe == nullptr) return output;
  char line[256];
  while (fgets(line, sizeof line, pipe) != nullptr) output.text += line;
  output.status = pclose(pipe);
  return output;
}

const std::string kFolder = ZBCCL_TEST_LIBRARIES;
const std::string kFake = ZBCCL_TEST_FAKE_FOLDER;

class Entry : public testing::Test {
 protected:
  void SetUp() override {
    if (sanitized()) GTEST_SKIP() << "a sanitizer's run time must come before what is preloaded";
  }
};

TEST_F(Entry, WithoutItTheOtherLibraryAnswers) {
  const Output output = ask("");
  EXPECT_EQ(0, output.status);
  EXPECT_EQ("linked 12345\nopened 12345\nslots 42\nsum refused\n", output.text);
}

TEST_F(Entry, Preloaded) {
  const Output output = ask("LD_PRELOAD=" + kFolder + "/libzbccl_nccl.so");
  EXPECT_EQ(0, output.status);
  EXPECT_EQ("linked 22809\nopened 22809\nslots 0\nsum right\n", output.text);
}

TEST_F(Entry, PreloadedAndHandedOn) {
  const std::string preload = "LD_PRELOAD=" + kFolder + "/libzbccl_nccl.so ";
  const std::string want = "linked 22809\nopened 22809\nslots 42\nsum right\n";
  EXPECT_EQ(want, ask(preload + "ZBCCL_NCCL_LIBRARY=" + kFake + "/libnccl.so.2").text);
  EXPECT_EQ(want, ask(preload + "LD_LIBRARY_PATH=" + kFake).text);
}

TEST_F(Entry, ByAudit) {
  const std::string audit = "LD_AUDIT=" + kFolder + "/libzbccl_nccl_audit.so ";
  const Output output = ask(audit);
  EXPECT_EQ(0, output.status);
  EXPECT_EQ("linked 22809\nopened 22809\nslots 0\nsum right\n", output.text);
  // The other library is still found by this one.
  const std::string want = "linked 22809\nopened 22809\nslots 42\nsum right\n";
  EXPECT_EQ(want, ask(audit + "ZBCCL_NCCL_LIBRARY=" + kFake + "/libnccl.so.2").text);
  EXPECT_EQ(want, ask(audit + "LD_LIBRARY_PATH=" + kFake).text);
}

TEST_F(Entry, ByTheSearchPath) {
  const Output output = ask("LD_LIBRARY_PATH=" + kFolder + "/zbccl/nccl");
  EXPECT_EQ(0, output.status);
  EXPECT_EQ("linked 22809\nopened 22809\nslots 0\nsum right\n", output.text);
}

}  // namespace
}  // namespace zbccl::test
