#include "base/fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <type_traits>
#include <utility>

namespace zbccl {
namespace {

bool is_open(int fd) { return fcntl(fd, F_GETFD) != -1; }
UniqueFd open_null() { return UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

static_assert(!std::is_copy_constructible_v<UniqueFd> && !std::is_copy_assignable_v<UniqueFd>);
static_assert(!std::is_copy_constructible_v<Mapping> && !std::is_copy_assignable_v<Mapping>);
static_assert(std::is_nothrow_move_constructible_v<UniqueFd>);
static_assert(std::is_nothrow_move_constructible_v<Mapping>);

TEST(UniqueFdTest, closes_once) {
  int raw = -1;
  {
    const UniqueFd fd = open_null();
    ASSERT_TRUE(fd.valid());
    raw = fd.get();
    EXPECT_TRUE(is_open(raw));
  }
  EXPECT_FALSE(is_open(raw));
}

TEST(UniqueFdTest, moves) {
  UniqueFd a = open_null();
  const int raw = a.get();
  UniqueFd b = std::move(a);
  EXPECT_FALSE(a.valid());  // NOLINT: a moved-from owner is empty by contract
  EXPECT_EQ(b.get(), raw);
  UniqueFd c = open_null();
  const int replaced = c.get();
  c = std::move(b);
  EXPECT_FALSE(is_open(replaced));
  EXPECT_EQ(c.get(), raw);
  UniqueFd& self = c;
  c = std::move(self);
  EXPECT_EQ(c.get(), raw);
  EXPECT_TRUE(is_open(raw));
}

TEST(UniqueFdTest, releases_and_resets) {
  UniqueFd fd = open_null();
  const int raw = fd.release();
  EXPECT_FALSE(fd.valid());
  EXPECT_TRUE(is_open(raw));
  fd.reset(raw);
  fd.reset();
  EXPECT_FALSE(is_open(raw));
  fd.reset();
  EXPECT_FALSE(fd.valid());
}

// mincore fails with ENOMEM on pages that are not mapped.
bool is_mapped(void* p) {
  unsigned char state = 0;
  return mincore(p, 4096, &state) == 0;
}
Mapping map_page() {
  void* const p = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? Mapping() : Mapping(p, 4096);
}

TEST(MappingTest, unmaps_once_and_moves) {
  Mapping a = map_page();
  ASSERT_TRUE(a.valid());
  void* const base = a.base();
  EXPECT_EQ(a.size(), 4096U);
  Mapping b = std::move(a);
  EXPECT_FALSE(a.valid());  // NOLINT: a moved-from owner is empty by contract
  EXPECT_EQ(a.size(), 0U);  // NOLINT
  EXPECT_TRUE(is_mapped(base));
  Mapping c;
  EXPECT_FALSE(c.valid());
  c = std::move(b);
  Mapping& self = c;
  c = std::move(self);
  EXPECT_TRUE(is_mapped(base));
  c.reset();
  EXPECT_FALSE(is_mapped(base));
  c.reset();
}

}  // namespace
}  // namespace zbccl
