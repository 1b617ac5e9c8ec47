#include "memory/pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace zbccl::memory {
namespace {

std::byte* take(Pool& pool, size_t bytes, Use use = Use::kUser) {
  auto block = pool.allocate(bytes, use);
  EXPECT_TRUE(block.ok()) << block.status().to_string();
  return static_cast<std::byte*>(*block);
}

TEST(Pool, GivesAlignedBlocksThatDoNotOverlap) {
  Pool pool;
  std::mt19937 random(1);
  struct Block {
    std::byte* at;
    size_t size;
    uint8_t fill;
  };
  std::vector<Block> live;
  for (int step = 0; step < 4000; ++step) {
    if (live.size() < 50 || random() % 2 == 0) {
      const size_t size = random() % 8 == 0 ? random() % 300'000 : random() % 3'000;
      const Block block = {take(pool, size), size, static_cast<uint8_t>(step)};
      EXPECT_EQ(reinterpret_cast<uintptr_t>(block.at) % 128, 0u);
      std::memset(block.at, block.fill, block.size);
      live.push_back(block);
    } else {
      const size_t i = random() % live.size();
      for (size_t k = 0; k < live[i].size; ++k) {
        ASSERT_EQ(static_cast<uint8_t>(live[i].at[k]), live[i].fill) << "byte " << k;
      }
      EXPECT_TRUE(pool.free(live[i].at).ok());
      live[i] = live.back();
      live.pop_back();
    }
  }
  for (const Block& block : live) EXPECT_TRUE(pool.free(block.at).ok());
  EXPECT_EQ(pool.report().used[0], 0u);
}

TEST(Pool, LocatesItsMemoryAndNothingElse) {
  Pool pool;
  std::byte* block = take(pool, 1000);
  const auto at = pool.locate(block + 10, 100);
  ASSERT_TRUE(at.has_value());
  EXPECT_EQ(pool.segment_base(at->segment) + at->offset, block + 10);
  int on_stack = 0;
  EXPECT_FALSE(pool.locate(&on_stack, sizeof on_stack).has_value());
  EXPECT_FALSE(pool.locate(nullptr, 0).has_value());
  EXPECT_FALSE(pool.locate(block, size_t{1} << 60).has_value());
  EXPECT_EQ(pool.segment_base(kMaxSegments - 1), nullptr);
  EXPECT_EQ(pool.segment_handle(kMaxSegments).status().code(), Code::kInvalidArgument);
}

TEST(Pool, RefusesWhatItDidNotGive) {
  Pool pool;
  std::byte* block = take(pool, 100);
  int on_stack = 0;
  EXPECT_EQ(pool.free(&on_stack).code(), Code::kInvalidArgument);
  EXPECT_EQ(pool.free(block + 1).code(), Code::kInvalidArgument);
  EXPECT_TRUE(pool.free(block).ok());
  EXPECT_EQ(pool.free(block).code(), Code::kInvalidArgument);
  EXPECT_EQ(pool.allocate(~size_t{0}, Use::kUser).status().code(), Code::kOutOfMemory);
}

TEST(Pool, ReusesALeasedBlockOnlyAfterTheLastLease) {
  Pool pool;
  std::byte* block = take(pool, 4096);
  EXPECT_TRUE(pool.lease(block + 100));
  EXPECT_TRUE(pool.lease(block));
  EXPECT_TRUE(pool.free(block).ok());
  EXPECT_EQ(pool.free(block).code(), Code::kInvalidArgument);
  EXPECT_FALSE(pool.lease(block)) << "a freed block takes no new lease";
  EXPECT_NE(take(pool, 4096), block);
  pool.release(block);
  EXPECT_NE(take(pool, 4096), block);
  pool.release(block);
  EXPECT_EQ(take(pool, 4096), block);
}

TEST(Pool, JoinsFreeNeighbours) {
  Pool pool;
  std::byte* a = take(pool, 1 << 16);
  std::byte* b = take(pool, 1 << 16);
  std::byte* c = take(pool, 1 << 16);
  take(pool, 128);
  EXPECT_TRUE(pool.free(a).ok());
  EXPECT_TRUE(pool.free(c).ok());
  EXPECT_TRUE(pool.free(b).ok());
  EXPECT_EQ(take(pool, 3 << 16), a);
}

TEST(Pool, GrowsUnderPeersThatHaveMappedIt) {
  Pool pool;
  std::byte* first = take(pool, 128);
  const auto handle = pool.segment_handle(0);
  ASSERT_TRUE(handle.ok());
  auto mapped = map_segment(handle->first, handle->second);
  ASSERT_TRUE(mapped.ok()) << mapped.status().to_string();
  std::byte* big = take(pool, 16 << 20);
  const auto at = pool.locate(big, 16 << 20);
  ASSERT_EQ(at->segment, pool.locate(first, 1)->segment);
  std::memset(big, 0x5a, 16 << 20);
  EXPECT_EQ(std::memcmp(mapped->base() + at->offset, big, 16 << 20), 0);
  mapped->base()[at->offset] = std::byte{1};
  EXPECT_EQ(big[0], std::byte{1});
}

TEST(Pool, GivesLargeFreedMemoryBack) {
  setenv("ZBCCL_POOL_KEEP", "1M", 1);
  Pool pool;
  unsetenv("ZBCCL_POOL_KEEP");
  std::byte* block = take(pool, 32 << 20);
  std::memset(block, 1, 32 << 20);
  EXPECT_GE(pool.report().resident, size_t{32} << 20);
  EXPECT_TRUE(pool.free(block).ok());
  EXPECT_LT(pool.report().resident, size_t{1} << 20);
}

TEST(Pool, CountsByUse) {
  Pool pool;
  take(pool, 1000, Use::kMetadata);
  take(pool, 2000, Use::kScratch);
  take(pool, 3000, Use::kStaging);
  const PoolReport report = pool.report();
  EXPECT_EQ(report.used[static_cast<size_t>(Use::kUser)], 0u);
  EXPECT_EQ(report.used[static_cast<size_t>(Use::kMetadata)], 1024u);
  EXPECT_EQ(report.used[static_cast<size_t>(Use::kScratch)], 2048u);
  EXPECT_EQ(report.used[static_cast<size_t>(Use::kStaging)], 3072u);
  EXPECT_GE(report.reserved, size_t{64} << 20);
}

TEST(Pool, ServesThreadsAtOnce) {
  Pool pool;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 500; ++i) {
        const size_t size = 64 + static_cast<size_t>(i % 50) * 100;
        std::byte* block = take(pool, size);
        std::memset(block, t, size);
        for (size_t k = 0; k < size; ++k) ASSERT_EQ(block[k], static_cast<std::byte>(t));
        ASSERT_TRUE(pool.free(block).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Segment, RefusesToShrinkOrOutgrowItsReserve) {
  auto segment = Segment::create(1 << 20);
  ASSERT_TRUE(segment.ok());
  EXPECT_TRUE((*segment)->grow(1 << 20).ok());
  EXPECT_EQ((*segment)->grow((1 << 20) + 1).code(), Code::kOutOfMemory);
  EXPECT_NE(ftruncate((*segment)->fd(), 4096), 0) << "sealed: a peer's mapping must not lose pages";
  EXPECT_FALSE(Segment::create(size_t{1} << 60).ok());
}

}  // namespace
}  // namespace zbccl::memory
