// Host memory that stands for a call's buffers on a GPU: overlaps and alignment are those of the
// device, and what a call writes is exactly its blocks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "collectives/cuda/buffers.h"
#include "collectives/cuda/mirror.h"

namespace zbccl::cuda {
namespace {

// Addresses that are never used for anything but their values.
const std::byte* device(uintptr_t at) {
  return reinterpret_cast<const std::byte*>(uintptr_t{0x7f0000000000} + at);
}

TEST(Mirror, KeepsOverlapsAndAlignment) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    Mirror mirror;
    std::vector<std::pair<uintptr_t, size_t>> ranges;
    for (int i = 0; i < 6; ++i) {
      ranges.emplace_back(random() % 3000, 1 + random() % 900);
      mirror.add(device(ranges.back().first), ranges.back().second);
    }
    const size_t bytes = mirror.arrange();
    std::vector<std::byte> memory(bytes + 128);
    auto* const base = reinterpret_cast<std::byte*>(
        (reinterpret_cast<uintptr_t>(memory.data()) + 127) / 128 * 128);
    mirror.place(base);
    // Every byte of every range has one byte here, and no two have the same.
    std::vector<int> owner(bytes, -1);
    for (const auto& [first, size] : ranges) {
      for (uintptr_t at = first; at < first + size; ++at) {
        const auto* const there = static_cast<const std::byte*>(mirror.at(device(at)));
        ASSERT_GE(there, base);
        ASSERT_LT(there, base + bytes);
        int& who = owner[static_cast<size_t>(there - base)];
        ASSERT_TRUE(who == -1 || who == static_cast<int>(at));
        who = static_cast<int>(at);
        ASSERT_EQ(reinterpret_cast<uintptr_t>(device(at)) % 128,
                  reinterpret_cast<uintptr_t>(there) % 128);
      }
      const auto* const begin = static_cast<const std::byte*>(mirror.at(device(first)));
      const auto* const last = static_cast<const std::byte*>(mirror.at(device(first + size - 1)));
      ASSERT_EQ(last - begin, static_cast<ptrdiff_t>(size - 1));
    }
    EXPECT_EQ(mirror.at(device(10'000)), device(10'000)) << "what is not in it stays as it is";
    EXPECT_EQ(mirror.at(nullptr), nullptr);
  }
}

size_t bytes_of(const std::vector<DeviceRange>& ranges) {
  size_t bytes = 0;
  for (const DeviceRange& range : ranges) bytes += range.bytes;
  return bytes;
}

TEST(CallRanges, AreWhatACallUses) {
  collectives::Collective call;
  call.type = DataType::kBf16;
  call.count = 100;
  call.send = device(0);
  call.recv = const_cast<std::byte*>(device(4096));
  call.operation = Operation::kAllGather;
  CallRanges ranges = ranges_of(call, 1, 4);
  EXPECT_EQ(bytes_of(ranges.in), 200U);
  EXPECT_EQ(bytes_of(ranges.out), 800U);
  call.operation = Operation::kBroadcast;
  call.root = 2;
  EXPECT_EQ(bytes_of(ranges_of(call, 1, 4).in), 0U);
  EXPECT_EQ(bytes_of(ranges_of(call, 2, 4).in), 200U);
  call.operation = Operation::kReduce;
  EXPECT_TRUE(ranges_of(call, 1, 4).out.empty());
  call.operation = Operation::kBarrier;
  EXPECT_TRUE(ranges_of(call, 1, 4).all.empty());
}

TEST(CallRanges, LeaveGapsAlone) {
  collectives::Collective call;
  call.operation = Operation::kAllGatherV;
  call.type = DataType::kF32;
  const size_t counts[] = {3, 0, 5};
  const size_t offsets[] = {10, 4, 20};
  auto blocks = collectives::Blocks::make(counts, offsets, 3, false);
  ASSERT_TRUE(blocks.ok());
  call.recv_blocks = *blocks;
  call.send = device(0);
  call.recv = const_cast<std::byte*>(device(1024));
  const CallRanges ranges = ranges_of(call, 2, 3);
  EXPECT_EQ(bytes_of(ranges.in), 20U);
  ASSERT_EQ(ranges.out.size(), 2U);
  EXPECT_EQ(ranges.out[0].data, device(1024 + 40));
  EXPECT_EQ(ranges.out[1].data, device(1024 + 80));
  EXPECT_EQ(bytes_of(ranges.out), 32U);
  // The mirror has the whole output, so that the blocks lie where they do on the device.
  EXPECT_EQ(bytes_of(ranges.all), 20U + 100U);
}

}  // namespace
}  // namespace zbccl::cuda
