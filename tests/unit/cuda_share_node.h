// Ranks that share memory of GPUs that are none, on the fake driver.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cuda_fake_driver.h"
#include "memory/cuda/device_pool.h"
#include "memory/cuda/janitor.h"
#include "memory/cuda/peer_access.h"
#include "memory/cuda/remote_memory.h"
#include "memory/exchange.h"
#include "support/job.h"

namespace zbccl::cuda {

using memory::Exchange;
using memory::PeerProcess;
using memory::ProcessInfo;
using test::JobOptions;
using test::Mode;
using test::Rank;

constexpr size_t kMiB = size_t{1} << 20;

inline Deadline soon() { return Deadline::after(Milliseconds(20'000)); }

inline void require(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.to_string());
}
template <typename T>
T require(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().to_string());
  return std::move(result).value();
}

// One rank with its GPU (its number), connected to all others.
struct Node {
  explicit Node(Rank& rank_) : rank(rank_) {
    fake::install();
    exchange = require(Exchange::acquire());
    index = rank.next_index();
    const ProcessInfo mine = exchange->info();
    rank.board().put_blob(slot(rank.rank()), &mine, sizeof mine);
    for (int r = 0; r < rank.size(); ++r) {
      ProcessInfo info;
      if (!rank.board().get_blob(slot(r), &info, sizeof info, std::chrono::seconds(30))) {
        throw std::runtime_error("a rank did not introduce itself");
      }
      peers.push_back(require(exchange->peer(info, soon())));
    }
  }

  void open() {
    pool = require(DevicePool::of(device()));
    for (int r = 0; r < rank.size(); ++r) {
      remotes.push_back(require(RemoteMemory::open(peers[static_cast<size_t>(r)],
                                                   require(device_id(device_of(r))), device())));
    }
  }
  int device_of(int r) const { return r % fake::kDevices; }
  int device() const { return device_of(rank.rank()); }

  // Everybody's location of something.
  std::vector<Location> show(const void* address) {
    const int first = 100 + 20 * rank.next_index();
    const Location mine = *pool->locate(address, 1);
    rank.board().put_blob(first + rank.rank(), &mine, sizeof mine);
    std::vector<Location> all(static_cast<size_t>(rank.size()));
    for (int r = 0; r < rank.size(); ++r) {
      rank.board().get_blob(first + r, &all[static_cast<size_t>(r)], sizeof(Location),
                            std::chrono::seconds(30));
    }
    return all;
  }
  // Through the table, as a kernel would.
  std::byte* reach(int r, const Location& at) const {
    // In this order, as one thread's acquire: the sanitizer sees no word that another process
    // passes.
    const uint64_t base = remotes[static_cast<size_t>(r)]->base(at.segment);
    EXPECT_EQ(base, remotes[static_cast<size_t>(r)]->table()[at.segment]);
    return base == 0 ? nullptr : reinterpret_cast<std::byte*>(base + at.offset);
  }

  // Every rank writes its number into its place of everyone's block, and looks at its own.
  void write_all(std::byte* block, size_t stride) {
    const std::vector<Location> all = show(block);
    for (int r = 0; r < rank.size(); ++r) {
      std::byte* there = reach(r, all[static_cast<size_t>(r)]);
      ASSERT_NE(there, nullptr) << "rank " << rank.rank() << " does not reach " << r;
      std::memset(there + static_cast<size_t>(rank.rank()) * stride, 0x40 + rank.rank(), stride);
    }
    rank.meet();
    for (int r = 0; r < rank.size(); ++r) {
      const size_t at = static_cast<size_t>(r) * stride;
      EXPECT_EQ(block[at], static_cast<std::byte>(0x40 + r));
      EXPECT_EQ(block[at + stride - 1], static_cast<std::byte>(0x40 + r));
    }
    rank.meet();
  }
  std::byte* take(size_t bytes) {
    return static_cast<std::byte*>(require(pool->allocate(bytes, Use::kUser)));
  }

  int slot(int r) const { return 20 * index + r; }

  Rank& rank;
  int index = 0;
  std::shared_ptr<Exchange> exchange;
  std::vector<std::shared_ptr<PeerProcess>> peers;
  DevicePool* pool = nullptr;
  std::vector<std::shared_ptr<RemoteMemory>> remotes;
};

}  // namespace zbccl::cuda
