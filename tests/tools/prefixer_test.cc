#include "launch/prefixer.h"

#include <gtest/gtest.h>

namespace zbccl::tools {
namespace {

class Prefixer : public testing::Test {
 protected:
  Merged merged_;
  LineStream zero_{"[0] ", merged_};
  LineStream one_{"[1] ", merged_};
  TimePoint now_{};
  std::string out_;
};

TEST_F(Prefixer, MarksEveryLine) {
  zero_.feed("a\nb\n\n", now_, out_);
  EXPECT_EQ(out_, "[0] a\n[0] b\n[0] \n");
}

TEST_F(Prefixer, JoinsAPieceWithItsRest) {
  zero_.feed("hel", now_, out_);
  EXPECT_EQ(out_, "");
  ASSERT_TRUE(zero_.due().has_value());
  one_.feed("between\n", now_, out_);
  zero_.feed("lo\n", now_, out_);
  EXPECT_EQ(out_, "[1] between\n[0] hello\n");
  EXPECT_FALSE(zero_.due().has_value());
}

TEST_F(Prefixer, StreamsAnOpenLine) {
  zero_.feed("In", now_, out_);
  zero_.flush(out_);
  EXPECT_EQ(out_, "[0] In");
  zero_.feed(" the", now_, out_);
  EXPECT_EQ(out_, "[0] In the");
  zero_.feed(" beginning\n", now_, out_);
  EXPECT_EQ(out_, "[0] In the beginning\n");
}

TEST_F(Prefixer, EndsAnotherRanksOpenLine) {
  zero_.feed("open", now_, out_);
  zero_.flush(out_);
  one_.feed("line\n", now_, out_);
  zero_.feed(" rest\n", now_, out_);
  EXPECT_EQ(out_, "[0] open\n[1] line\n[0]  rest\n");
}

TEST_F(Prefixer, DoesNotEndALineTwice) {
  zero_.feed("open", now_, out_);
  zero_.flush(out_);
  one_.feed("line\n", now_, out_);
  zero_.feed("\nnext\n", now_, out_);
  EXPECT_EQ(out_, "[0] open\n[1] line\n[0] next\n");
}

TEST_F(Prefixer, EndsTheLastLine) {
  zero_.feed("no end", now_, out_);
  zero_.close(out_);
  one_.close(out_);
  EXPECT_EQ(out_, "[0] no end\n");
}

TEST_F(Prefixer, PassesOnVeryLongLinesAndAnyByte) {
  std::string line(200'000, 'x');
  line[7] = '\0';
  line[8] = '\r';
  zero_.feed(line, now_, out_);
  EXPECT_EQ(out_, "[0] " + line);
  zero_.feed("\n", now_, out_);
  EXPECT_EQ(out_, "[0] " + line + "\n");
}

TEST_F(Prefixer, KeepsPlacesApart) {
  Merged elsewhere;
  LineStream error("[0] ", elsewhere);
  zero_.feed("open", now_, out_);
  zero_.flush(out_);
  std::string errors;
  error.feed("bad\n", now_, errors);
  zero_.feed(" still\n", now_, out_);
  EXPECT_EQ(out_, "[0] open still\n");
  EXPECT_EQ(errors, "[0] bad\n");
}

}  // namespace
}  // namespace zbccl::tools
