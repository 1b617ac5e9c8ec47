#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "cuda_fake_driver.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/janitor.h"
#include "memory/cuda/remote_memory.h"
#include "memory/device_memory.h"
#include "memory/exchange.h"

extern "C" void* zbcclTorchAlloc(ssize_t size, int device, void* stream);
extern "C" void zbcclTorchFree(void* block, ssize_t size, int device, void* stream);

namespace zbccl::cuda {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

Deadline soon() { return Deadline::after(Milliseconds(20'000)); }

DevicePool& pool_of(int device) {
  fake::install();
  auto pool = DevicePool::of(device);
  EXPECT_TRUE(pool.ok()) << pool.status().to_string();
  return **pool;
}

std::byte* take(DevicePool& pool, size_t bytes, Use use = Use::kUser) {
  auto block = pool.allocate(bytes, use);
  EXPECT_TRUE(block.ok()) << block.status().to_string();
  return static_cast<std::byte*>(*block);
}

TEST(CudaDriver, IsMissedInWords) {
  // No fake: on a machine without a GPU this is what every path ends in.
  const auto d = driver();
  if (d.ok()) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_EQ(d.status().code(), Code::kUnsupported);
  EXPECT_NE(d.status().message().find("driver"), std::string::npos) << d.status().message();
  EXPECT_EQ(DevicePool::of(0).status().code(), Code::kUnsupported);
  EXPECT_EQ(DevicePool::of(-5).status().code(), Code::kUnsupported);
  EXPECT_EQ(device_id(0).status().code(), Code::kUnsupported);
  EXPECT_EQ(memory::allocate_on_device(1, 0).status().code(), Code::kUnsupported);
  int on_stack = 0;
  EXPECT_EQ(memory::register_device_memory(&on_stack, 4).code(), Code::kUnsupported);
  EXPECT_EQ(memory::deregister_device_memory(&on_stack).code(), Code::kInvalidArgument);
  EXPECT_EQ(memory::free_on_device(&on_stack).code(), Code::kInvalidArgument);
  EXPECT_EQ(memory::device_of(&on_stack), -1);
  EXPECT_EQ(memory::current_device(), -1);
  EXPECT_EQ(memory::device_totals().reserved, 0u);
  const DeviceGuard guard(0);
  EXPECT_FALSE(guard.status().ok());
}

TEST(CudaDriver, NothingIsInitialisedBeforeItIsUsed) {
  EXPECT_EQ(memory::current_device(), -1);
  EXPECT_EQ(memory::device_of(&fake::faults()), -1);
  EXPECT_EQ(memory::device_totals().reserved, 0u);
  fake::install();
  EXPECT_EQ(memory::device_imports(), nullptr);
}

TEST(CudaDriver, GuardsRestoreWhatWasCurrent) {
  fake::install();
  EXPECT_EQ(current_device(), -1);
  fake::use(2);
  EXPECT_EQ(current_device(), 2);
  {
    const DeviceGuard guard(1);
    ASSERT_TRUE(guard.status().ok());
    EXPECT_EQ(current_device(), 1);
  }
  EXPECT_EQ(current_device(), 2);
  const DeviceGuard none(fake::kDevices);
  EXPECT_EQ(none.status().code(), Code::kInvalidArgument);
  EXPECT_EQ(current_device(), 2);
}

TEST(CudaDriver, ErrorsSayWhatTheDriverSays) {
  fake::install();
  const Status status = cuda_error(CUDA_ERROR_INVALID_VALUE, "cannot do it");
  EXPECT_EQ(status.code(), Code::kCuda);
  EXPECT_EQ(status.message(), "cannot do it: FAKE_ERROR (1): the fake driver says so");
  EXPECT_EQ(cuda_error(CUDA_ERROR_OUT_OF_MEMORY, "x").code(), Code::kOutOfMemory);
  EXPECT_EQ(cuda_error(cudaErrorInvalidValue, "x").code(), Code::kCuda);
  EXPECT_EQ(cuda_error(cudaErrorMemoryAllocation, "x").code(), Code::kOutOfMemory);
}

TEST(CudaDriver, AForkOfAProcessThatUsedItIsTold) {
  pool_of(0);
  const pid_t child = fork();
  if (child == 0) {
    const bool told = driver().status().code() == Code::kInvalidUsage &&
                      DevicePool::of(0).status().code() == Code::kInvalidUsage &&
                      memory::device_imports() == nullptr && memory::current_device() == -1 &&
                      memory::device_totals().reserved == 0;
    _exit(told ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(DeviceId, IsTheSameUnderEveryNumbering) {
  fake::install({2, 0});
  const auto first = device_id(0);
  const auto second = device_id(1);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->uuid[0], 2);
  EXPECT_EQ(second->uuid[0], 0);
  EXPECT_EQ(device_ordinal(*second).value(), 1);
  DeviceId hidden = *first;
  hidden.uuid[0] = 3;
  EXPECT_EQ(device_ordinal(hidden).value(), std::nullopt);
  EXPECT_EQ(first->text(), "GPU-02ababab-abab-abab-abab-abababababab");
  EXPECT_FALSE(device_id(2).ok());
}

TEST(DevicePool, GivesAlignedBlocksThatDoNotOverlap) {
  DevicePool& pool = pool_of(0);
  EXPECT_EQ(&pool, *DevicePool::of(0));
  std::mt19937 random(1);
  struct Block {
    std::byte* at;
    size_t size;
    std::byte fill;
  };
  std::vector<Block> live;
  for (int step = 0; step < 2000; ++step) {
    if (live.size() < 30 || random() % 2 == 0) {
      const size_t size = random() % 8 == 0 ? random() % (3 * kMiB) : random() % 3000;
      const Block block = {take(pool, size), size, static_cast<std::byte>(step)};
      EXPECT_EQ(reinterpret_cast<uintptr_t>(block.at) % 512, 0u);
      if (size > 0) {
        block.at[0] = block.fill;
        block.at[size - 1] = block.fill;
      }
      live.push_back(block);
    } else {
      const size_t i = random() % live.size();
      if (live[i].size > 0) {
        ASSERT_EQ(live[i].at[0], live[i].fill);
        ASSERT_EQ(live[i].at[live[i].size - 1], live[i].fill);
      }
      EXPECT_TRUE(pool.free(live[i].at).ok());
      live[i] = live.back();
      live.pop_back();
    }
  }
  for (const Block& block : live) EXPECT_TRUE(pool.free(block.at).ok());
  EXPECT_EQ(pool.report().used[0], 0u);
  EXPECT_EQ(fake::counts().contexts_pushed, 0);
}

TEST(DevicePool, GrowsByChunksAndExactlyForLargeBlocks) {
  DevicePool& pool = pool_of(0);
  take(pool, 100);
  EXPECT_EQ(fake::taken(0), 2 * kMiB);
  take(pool, 2 * kMiB - 512);
  EXPECT_EQ(fake::taken(0), 2 * kMiB);
  std::byte* large = take(pool, 20 * kMiB);
  EXPECT_EQ(fake::taken(0), 22 * kMiB);
  EXPECT_TRUE(pool.free(large).ok());
  EXPECT_EQ(take(pool, 20 * kMiB), large);
  // What is free at the end of the last chunk is part of the next block.
  EXPECT_TRUE(pool.free(large).ok());
  EXPECT_EQ(take(pool, 24 * kMiB), large);
  EXPECT_EQ(fake::taken(0), 26 * kMiB);
  const DeviceReport report = pool.report();
  EXPECT_EQ(report.used[0], 26 * kMiB);
  EXPECT_EQ(report.held, 0u);
  EXPECT_EQ(report.reserved, uint64_t{64} << 30);
}

TEST(DevicePool, LocatesItsMemoryAndNothingElse) {
  DevicePool& pool = pool_of(1);
  std::byte* block = take(pool, 1000);
  const auto at = pool.locate(block + 10, 100);
  ASSERT_TRUE(at.has_value());
  EXPECT_EQ(at->segment, 0u);
  EXPECT_EQ(pool.segment_base(0) + at->offset, reinterpret_cast<uint64_t>(block + 10));
  int on_stack = 0;
  EXPECT_FALSE(pool.locate(&on_stack, 4).has_value());
  EXPECT_FALSE(pool.locate(nullptr, 0).has_value());
  EXPECT_FALSE(pool.locate(block, size_t{1} << 60).has_value());
  EXPECT_EQ(pool.segment_base(1), 0u);
  EXPECT_EQ(memory::device_of(block + 999), 1);
  EXPECT_EQ(memory::device_of(&on_stack), -1);
  EXPECT_TRUE(pool.still_valid(*at));
}

TEST(DevicePool, RefusesWhatItDidNotGive) {
  DevicePool& pool = pool_of(0);
  std::byte* block = take(pool, 100);
  int on_stack = 0;
  EXPECT_EQ(pool.free(&on_stack).code(), Code::kInvalidArgument);
  EXPECT_EQ(pool.free(block + 1).code(), Code::kInvalidArgument);
  EXPECT_EQ(memory::free_on_device(&on_stack).code(), Code::kInvalidArgument);
  EXPECT_TRUE(memory::free_on_device(block).ok());
  EXPECT_EQ(pool.free(block).code(), Code::kInvalidArgument);
  EXPECT_EQ(pool.allocate(~size_t{0}, Use::kUser).status().code(), Code::kOutOfMemory);
  EXPECT_EQ(DevicePool::of(-1).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(DevicePool::of(fake::kDevices).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(DevicePool::of(1000).status().code(), Code::kInvalidArgument);
}

TEST(DevicePool, NeedsAGpuThatShares) {
  fake::install();
  fake::faults().lose_attribute = true;
  EXPECT_EQ(DevicePool::of(0).status().code(), Code::kUnsupported);
  fake::faults().lose_attribute = false;
  EXPECT_TRUE(DevicePool::of(0).ok());
}

TEST(DevicePool, AnswersAFullGpuAndGoesOn) {
  DevicePool& pool = pool_of(0);
  fake::faults().memory = 8 * kMiB;
  std::byte* first = take(pool, 4 * kMiB);
  std::byte* second = take(pool, 4 * kMiB);
  const auto third = pool.allocate(2 * kMiB, Use::kUser);
  EXPECT_EQ(third.status().code(), Code::kOutOfMemory);
  EXPECT_NE(third.status().message().find("FAKE_OUT_OF_MEMORY"), std::string::npos)
      << third.status().message();
  // Chunks that are free serve a block that fits none of them.
  EXPECT_TRUE(pool.free(first).ok());
  EXPECT_TRUE(pool.free(second).ok());
  EXPECT_EQ(take(pool, 8 * kMiB), first) << "both in one piece";
  EXPECT_TRUE(pool.free(first).ok());
  std::byte* wide = take(pool, 512);
  EXPECT_EQ(pool.allocate(8 * kMiB, Use::kUser).status().code(), Code::kOutOfMemory);
  EXPECT_TRUE(pool.free(wide).ok());
  EXPECT_EQ(fake::counts().mappings, static_cast<int>(fake::taken(0) / (4 * kMiB)));
}

TEST(DevicePool, GivesFreeChunksBack) {
  setenv("ZBCCL_POOL_KEEP", "4M", 1);
  DevicePool& pool = pool_of(0);
  unsetenv("ZBCCL_POOL_KEEP");
  std::byte* small = take(pool, 2 * kMiB);
  std::byte* large = take(pool, 64 * kMiB);
  std::byte* last = take(pool, 2 * kMiB);
  EXPECT_TRUE(pool.free(large).ok());
  ASSERT_TRUE(wait_for_janitor(soon()));
  EXPECT_EQ(fake::taken(0), 4 * kMiB);
  EXPECT_TRUE(pool.free(small).ok());
  EXPECT_EQ(fake::taken(0), 4 * kMiB) << "kept for reuse";
  EXPECT_EQ(take(pool, 2 * kMiB), small);
  // The hole is used again.
  EXPECT_EQ(take(pool, 64 * kMiB), large);
  EXPECT_TRUE(pool.free(last).ok());
}

TEST(DevicePool, APlaceThatIsBeingUnmappedIsNotUsed) {
  setenv("ZBCCL_POOL_KEEP", "0", 1);
  DevicePool& pool = pool_of(0);
  unsetenv("ZBCCL_POOL_KEEP");
  fake::faults().slow_unmap = true;
  std::byte* first = take(pool, 4 * kMiB);
  EXPECT_TRUE(pool.free(first).ok()) << "waits for nothing";
  std::byte* second = take(pool, 4 * kMiB);
  EXPECT_NE(second, first);
  second[0] = std::byte{1};
  fake::faults().slow_unmap = false;
  ASSERT_TRUE(wait_for_janitor(soon()));
  EXPECT_EQ(take(pool, 4 * kMiB), first);
  EXPECT_EQ(second[0], std::byte{1});
}

TEST(DevicePool, IsReachableForEveryGpuOfTheProcessThatCan) {
  DevicePool& first = pool_of(0);
  std::byte* before = take(first, 100);
  fake::faults().no_peer_from = 3;
  DevicePool& second = pool_of(1);
  pool_of(3);
  std::byte* after = take(first, 4 * kMiB);
  for (const std::byte* block : {before, after}) {
    EXPECT_TRUE(fake::accessible(0, block));
    EXPECT_TRUE(fake::accessible(1, block));
    EXPECT_FALSE(fake::accessible(2, block)) << "it is not in use";
    EXPECT_FALSE(fake::accessible(3, block)) << "it reaches nobody";
  }
  EXPECT_TRUE(fake::accessible(0, take(second, 1)));
}

TEST(DevicePool, AFailedChunkLeavesNothingBehind) {
  DevicePool& pool = pool_of(0);
  take(pool, 1);
  const fake::Counts before = fake::counts();
  fake::faults().no_access_for = 0;
  EXPECT_EQ(pool.allocate(8 * kMiB, Use::kUser).status().code(), Code::kCuda);
  EXPECT_EQ(fake::counts().allocations, before.allocations);
  EXPECT_EQ(fake::counts().mappings, before.mappings);
  fake::faults().no_access_for = -1;
  EXPECT_TRUE(pool.allocate(8 * kMiB, Use::kUser).ok());
}

TEST(DevicePool, CountsByUse) {
  DevicePool& pool = pool_of(0);
  take(pool, 1000, Use::kMetadata);
  take(pool, 2000, Use::kScratch);
  take(pool, 512, Use::kUser);
  const DeviceReport report = pool.report();
  EXPECT_EQ(report.used[static_cast<size_t>(Use::kUser)], 512u);
  EXPECT_EQ(report.used[static_cast<size_t>(Use::kMetadata)], 1024u);
  EXPECT_EQ(report.used[static_cast<size_t>(Use::kScratch)], 2048u);
  EXPECT_EQ(report.held, 2 * kMiB - 512);
  const memory::DeviceTotals totals = memory::device_totals();
  EXPECT_EQ(totals.user, 512u);
  EXPECT_EQ(totals.held, report.held);
  EXPECT_EQ(totals.reserved, report.reserved);
}

TEST(DevicePool, ServesThreadsAtOnce) {
  setenv("ZBCCL_POOL_KEEP", "1M", 1);
  DevicePool& pool = pool_of(0);
  unsetenv("ZBCCL_POOL_KEEP");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 200; ++i) {
        const size_t size = 64 + static_cast<size_t>(i % 50) * 100'000;
        std::byte* block = take(pool, size);
        std::memset(block, t, size);
        EXPECT_TRUE(pool.locate(block, size).has_value());
        for (size_t k = 0; k < size; k += 4096) ASSERT_EQ(block[k], static_cast<std::byte>(t));
        ASSERT_TRUE(pool.free(block).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(wait_for_janitor(soon()));
}

TEST(DevicePool, WorksWhileAStreamIsCaptured) {
  fake::install();
  fake::set_capturing(true);
  DevicePool& pool = pool_of(0);
  auto exchange = memory::Exchange::acquire();
  ASSERT_TRUE(exchange.ok());
  auto self = (*exchange)->peer((*exchange)->info(), soon());
  auto remote = RemoteMemory::open(*self, pool.id(), 0);
  ASSERT_TRUE(remote.ok()) << remote.status().to_string();
  take(pool, 4 * kMiB);
  const Status shared = pool.share(0, {&*self, 1}, soon());
  EXPECT_TRUE(shared.ok()) << shared.to_string();
}

// Ranks of one process: their tables hold the owner's own addresses.
TEST(RemoteMemory, ReachesTheOwnProcess) {
  DevicePool& pool = pool_of(0);
  auto exchange = memory::Exchange::acquire();
  ASSERT_TRUE(exchange.ok());
  auto self = (*exchange)->peer((*exchange)->info(), soon());
  ASSERT_TRUE(self.ok());
  for (const int local : {0, 1}) {
    auto remote = RemoteMemory::open(*self, pool.id(), local);
    ASSERT_TRUE(remote.ok()) << remote.status().to_string();
    EXPECT_EQ((*remote)->base(0), pool.segment_base(0));
    EXPECT_EQ((*remote)->table()[0], pool.segment_base(0));
    EXPECT_EQ((*remote)->table()[1], 0u);
    EXPECT_EQ(memory::device_of((*remote)->table()), local);
    auto again = RemoteMemory::open(*self, pool.id(), local);
    EXPECT_EQ(again->get(), remote->get()) << "communicators share it";
  }
  fake::faults().no_peer_from = 2;
  EXPECT_EQ(RemoteMemory::open(*self, pool.id(), 2).status().code(), Code::kUnsupported);
  DeviceId nobody;
  EXPECT_EQ(RemoteMemory::open(*self, nobody, 0).status().code(), Code::kInvalidArgument);
}

TEST(RemoteMemory, FollowsRegisteredMemoryOfTheOwnProcess) {
  DevicePool& pool = pool_of(0);
  auto exchange = memory::Exchange::acquire();
  auto self = (*exchange)->peer((*exchange)->info(), soon());
  ASSERT_TRUE(self.ok());
  auto early = RemoteMemory::open(*self, pool.id(), 1);
  ASSERT_TRUE(early.ok()) << early.status().to_string();
  void* tensor = fake::device_malloc(0, 3 * kMiB);
  ASSERT_TRUE(pool.add_foreign(tensor, 3 * kMiB).ok());
  const auto at = pool.locate(static_cast<std::byte*>(tensor) + 5, 10);
  ASSERT_TRUE(at.has_value());
  EXPECT_EQ(at->segment, 1u);
  EXPECT_EQ(at->offset, 5u);
  EXPECT_EQ((*early)->base(1), 0u) << "not shared yet";
  ASSERT_TRUE(pool.share(1, {&*self, 1}, soon()).ok());
  EXPECT_EQ((*early)->base(1), reinterpret_cast<uint64_t>(tensor));
  EXPECT_EQ((*early)->table()[1], reinterpret_cast<uint64_t>(tensor));
  auto late = RemoteMemory::open(*self, pool.id(), 2);
  EXPECT_EQ((*late)->base(1), reinterpret_cast<uint64_t>(tensor));
  ASSERT_TRUE(pool.remove_foreign(tensor, soon()).ok());
  EXPECT_EQ((*early)->table()[1], 0u);
  EXPECT_EQ((*late)->base(1), 0u);
  fake::device_free(tensor);
}

TEST(DevicePool, RegistersAnAllocationOnceAndCountsTheTimes) {
  DevicePool& pool = pool_of(0);
  auto* tensor = static_cast<std::byte*>(fake::device_malloc(0, kMiB));
  ASSERT_TRUE(pool.add_foreign(tensor, 1000).ok());
  ASSERT_TRUE(pool.add_foreign(tensor + 5000, 1000).ok()) << "another tensor in it";
  ASSERT_TRUE(pool.add_foreign(tensor, 1000).ok());
  EXPECT_EQ(pool.locate(tensor, kMiB)->segment, 1u) << "all of the allocation, and once";
  EXPECT_EQ(pool.report().foreign, kMiB);
  EXPECT_TRUE(pool.remove_foreign(tensor, soon()).ok());
  EXPECT_TRUE(pool.remove_foreign(tensor, soon()).ok());
  EXPECT_EQ(pool.remove_foreign(tensor, soon()).code(), Code::kInvalidArgument);
  EXPECT_TRUE(pool.locate(tensor, 1).has_value()) << "the other tensor is still registered";
  EXPECT_TRUE(pool.remove_foreign(tensor + 5000, soon()).ok());
  EXPECT_FALSE(pool.locate(tensor, 1).has_value());
  EXPECT_EQ(pool.report().foreign, 0u);
  fake::device_free(tensor);
}

TEST(DevicePool, NoticesThatRegisteredMemoryWasFreed) {
  DevicePool& pool = pool_of(0);
  void* tensor = fake::device_malloc(0, kMiB);
  ASSERT_TRUE(pool.add_foreign(tensor, kMiB).ok());
  const Location at = *pool.locate(tensor, 1);
  EXPECT_TRUE(pool.still_valid(at));
  fake::device_free(tensor);
  EXPECT_FALSE(pool.still_valid(at));
  void* other = fake::device_malloc(0, kMiB);
  ASSERT_EQ(other, tensor) << "the system gave another address, so this proves nothing";
  EXPECT_FALSE(pool.still_valid(at)) << "the same address, other memory";
  ASSERT_TRUE(pool.add_foreign(other, kMiB).ok());
  const Location fresh = *pool.locate(other, 1);
  EXPECT_NE(fresh.segment, at.segment);
  EXPECT_TRUE(pool.still_valid(fresh));
  EXPECT_FALSE(pool.still_valid(at));
  EXPECT_TRUE(pool.remove_foreign(tensor, soon()).ok()) << "the older registration";
  EXPECT_TRUE(pool.still_valid(fresh));
  EXPECT_TRUE(pool.remove_foreign(other, soon()).ok());
  EXPECT_FALSE(pool.registered(tensor));
  fake::device_free(other);
}

TEST(DevicePool, RefusesMemoryThatIsNotTheGpus) {
  DevicePool& pool = pool_of(0);
  int on_stack = 0;
  EXPECT_EQ(pool.add_foreign(&on_stack, 4).code(), Code::kCuda);
  void* elsewhere = fake::device_malloc(1, kMiB);
  const Status wrong = pool.add_foreign(elsewhere, kMiB);
  EXPECT_EQ(wrong.code(), Code::kInvalidArgument);
  EXPECT_NE(wrong.message().find("GPU 1"), std::string::npos) << wrong.message();
  void* tensor = fake::device_malloc(0, kMiB);
  EXPECT_EQ(pool.add_foreign(tensor, kMiB + 1).code(), Code::kInvalidArgument);
  EXPECT_TRUE(memory::register_device_memory(elsewhere, kMiB).ok()) << "its own GPU takes it";
  EXPECT_TRUE(memory::deregister_device_memory(elsewhere).ok());
  std::byte* own = take(pool, 100);
  EXPECT_TRUE(memory::register_device_memory(own, 100).ok()) << "the pool's is born registered";
  EXPECT_TRUE(memory::deregister_device_memory(own).ok());
}

TEST(DevicePool, HasAnEndOfSegmentNumbers) {
  DevicePool& pool = pool_of(0);
  std::vector<void*> tensors;
  for (size_t i = 1; i < kMaxDeviceSegments; ++i) {
    tensors.push_back(fake::device_malloc(0, 4096));
    ASSERT_TRUE(pool.add_foreign(tensors.back(), 4096).ok());
  }
  void* more = fake::device_malloc(0, 4096);
  EXPECT_EQ(pool.add_foreign(more, 4096).code(), Code::kOutOfMemory);
  ASSERT_TRUE(pool.remove_foreign(tensors[7], soon()).ok());
  ASSERT_TRUE(pool.add_foreign(more, 4096).ok());
  EXPECT_EQ(pool.locate(more, 1)->segment, pool.locate(tensors[6], 1)->segment + 1);
  tensors[7] = more;
  for (void* tensor : tensors) ASSERT_TRUE(pool.remove_foreign(tensor, soon()).ok());
}

// PyTorch's allocator: what a stream still uses is not given to anybody else.
TEST(TorchAllocator, FreesInTheOrderOfTheStream) {
  DevicePool& pool = pool_of(0);
  const auto stream = reinterpret_cast<void*>(uintptr_t{7});
  void* first = zbcclTorchAlloc(2 * kMiB, 0, stream);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(pool.locate(first, 2 * kMiB)->segment, 0u) << "born registered";
  fake::faults().streams_stand = true;
  zbcclTorchFree(first, 2 * kMiB, 0, stream);
  EXPECT_EQ(pool.report().used[0], 2 * kMiB);
  void* second = zbcclTorchAlloc(2 * kMiB, 0, stream);
  EXPECT_NE(second, first);
  zbcclTorchFree(first, 2 * kMiB, 0, stream);  // a second time: refused and logged
  fake::faults().streams_stand = false;
  void* third = zbcclTorchAlloc(2 * kMiB, 0, stream);
  EXPECT_EQ(third, first);
  zbcclTorchFree(second, 2 * kMiB, 0, stream);
  zbcclTorchFree(third, 2 * kMiB, 0, stream);
  zbcclTorchFree(nullptr, 0, 0, stream);
  EXPECT_EQ(pool.report().used[0], 0u);
  int on_stack = 0;
  zbcclTorchFree(&on_stack, 4, 0, stream);
  EXPECT_EQ(fake::counts().contexts_pushed, 0);
}

TEST(TorchAllocator, WaitsForStreamsBeforeItSaysThatMemoryIsOut) {
  pool_of(0);
  fake::faults().memory = 8 * kMiB;
  const auto stream = reinterpret_cast<void*>(uintptr_t{7});
  void* block = zbcclTorchAlloc(8 * kMiB, 0, stream);
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(zbcclTorchAlloc(2 * kMiB, 0, stream), nullptr);
  fake::faults().streams_stand = true;
  zbcclTorchFree(block, 8 * kMiB, 0, stream);
  std::thread later([] {
    std::this_thread::sleep_for(Milliseconds(100));
    fake::faults().streams_stand = false;
  });
  EXPECT_EQ(zbcclTorchAlloc(4 * kMiB, 0, stream), block);
  later.join();
  EXPECT_EQ(zbcclTorchAlloc(-1, 0, stream), nullptr);
  EXPECT_EQ(zbcclTorchAlloc(1, 99, stream), nullptr);
}

TEST(TorchAllocator, DefersWhatIsFreedDuringACapture) {
  DevicePool& pool = pool_of(0);
  const auto stream = reinterpret_cast<void*>(uintptr_t{7});
  void* block = zbcclTorchAlloc(2 * kMiB, 0, stream);
  fake::set_capturing(true);
  zbcclTorchFree(block, 2 * kMiB, 0, stream);
  EXPECT_NE(zbcclTorchAlloc(2 * kMiB, 0, stream), block);
  EXPECT_EQ(pool.report().used[0], 4 * kMiB);
  fake::set_capturing(false);
  EXPECT_EQ(zbcclTorchAlloc(2 * kMiB, 0, stream), block);
}

}  // namespace
}  // namespace zbccl::cuda
