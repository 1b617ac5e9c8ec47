#include "base/clock.h"

#include <gtest/gtest.h>

namespace zbccl {
namespace {

TEST(DeadlineTest, passes_when_its_time_has_come) {
  EXPECT_TRUE(Deadline::after(Milliseconds(0)).passed());
  EXPECT_TRUE(Deadline::after(Milliseconds(-5)).passed());
  EXPECT_EQ(Deadline::after(Milliseconds(-5)).left(), Milliseconds(0));
  const Deadline later = Deadline::after(std::chrono::hours(1));
  EXPECT_FALSE(later.passed());
  EXPECT_GT(later.left(), std::chrono::minutes(50));
  EXPECT_LE(later.left(), std::chrono::hours(1));
}

TEST(DeadlineTest, never_does_not_pass_and_fits_system_calls) {
  EXPECT_FALSE(Deadline::never().passed());
  EXPECT_EQ(Deadline::never().left(), std::chrono::hours(24));
}

// What is left is never rounded down to nothing: a poll would spin.
TEST(DeadlineTest, left_is_at_least_a_millisecond_until_it_passes) {
  const Deadline soon = Deadline::after(Milliseconds(20));
  while (!soon.passed()) {
    const Milliseconds left = soon.left();
    if (left == Milliseconds(0)) {
      EXPECT_TRUE(soon.passed());
    } else {
      EXPECT_LE(left, Milliseconds(20));
    }
  }
  EXPECT_EQ(soon.left(), Milliseconds(0));
}

TEST(DeadlineTest, times_beyond_the_clock_are_never) {
  EXPECT_FALSE(Deadline::after(Milliseconds::max()).passed());
  EXPECT_EQ(Deadline::after(Milliseconds::max()).at(), Deadline::never().at());
  EXPECT_TRUE(Deadline::after(Milliseconds::min()).passed());
}

}  // namespace
}  // namespace zbccl
