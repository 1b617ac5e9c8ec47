// Sizes and moves of what `zbccl perf` measures: every rank's input reaches exactly the outputs it
// should.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "perf/operation.h"

namespace zbccl::tools {
namespace {

constexpr Op kAll[] = {Op::kAllReduce,     Op::kReduce,         Op::kAllGather, Op::kAllGatherV,
                       Op::kReduceScatter, Op::kReduceScatterV, Op::kBroadcast, Op::kAllToAll,
                       Op::kAllToAllV,     Op::kGather,         Op::kScatter,   Op::kSendRecv,
                       Op::kBarrier};

TEST(PerfOperation, NamesAreReadBack) {
  for (const Op op : kAll) {
    EXPECT_EQ(parse_op(op_name(op)), op);
    EXPECT_NE(op_names().find(op_name(op)), std::string::npos);
  }
  EXPECT_EQ(parse_op("all-to-all-v"), Op::kAllToAllV);
  EXPECT_EQ(parse_op("all_to_none"), std::nullopt);
}

TEST(PerfOperation, PartsAreUnevenAndSumToTheSize) {
  for (const int ranks : {1, 2, 3, 8, 64, 256}) {
    for (const size_t elements : {size_t{0}, size_t{1}, size_t{1000}, size_t{1} << 40}) {
      const std::vector<size_t> parts = uneven_parts(elements, ranks);
      ASSERT_EQ(parts.size(), static_cast<size_t>(ranks));
      EXPECT_EQ(std::accumulate(parts.begin(), parts.end(), size_t{0}), elements);
      EXPECT_EQ(parts, uneven_parts(elements, ranks));
    }
    const std::vector<size_t> parts = uneven_parts(100'000, ranks);
    if (ranks > 1) {
      EXPECT_GT(std::set<size_t>(parts.begin(), parts.end()).size(), 1u);
    }
  }
}

// What a peer that is no C++ has to repeat.
TEST(PerfOperation, PartsStayAsTheyAre) {
  EXPECT_EQ(uneven_parts(1024, 2), (std::vector<size_t>{853, 171}));
  EXPECT_EQ(uneven_parts(1000, 4), (std::vector<size_t>{161, 32, 354, 453}));
}

TEST(PerfOperation, SizesAreTheLargerOfWhatARankGivesAndGets) {
  for (const Op op : kAll) {
    for (const int ranks : {1, 3, 4}) {
      for (int rank = 0; rank < ranks; ++rank) {
        const Shape shape = shape_of(op, 4800, 4, rank, ranks);
        if (!has_data(op)) {
          EXPECT_EQ(shape.larger(), 0u);
        } else {
          EXPECT_EQ(shape.larger(), 1200u) << op_name(op);
        }
      }
    }
  }
}

// Follows every element: a move takes it from a place in the sender's input, and together the moves
// cover the output once.
TEST(PerfOperation, MovesCoverEveryOutputOnce) {
  for (const Op op : kAll) {
    if (reduces(op) || !has_data(op)) continue;
    for (const int ranks : {1, 2, 5}) {
      for (int rank = 0; rank < ranks; ++rank) {
        const CallSpec spec = {op, zbcclFloat32, zbcclSum, ranks / 2};
        const Shape shape = shape_of(op, 1000, 1, rank, ranks);
        std::vector<int> covered(shape.recv);
        for (const Moved& moved : moves_of(spec, shape, rank, ranks)) {
          const Shape peer = shape_of(op, 1000, 1, moved.from, ranks);
          ASSERT_TRUE(gives(op, moved.from, spec.root));
          ASSERT_LE(moved.send_first + moved.count, peer.send) << op_name(op);
          ASSERT_LE(moved.recv_first + moved.count, shape.recv) << op_name(op);
          for (size_t i = 0; i < moved.count; ++i) ++covered[moved.recv_first + i];
          if (op != Op::kAllToAllV) continue;
          // It is what the sender's row has for this rank.
          EXPECT_EQ(peer.send_parts[static_cast<size_t>(rank)], moved.count);
          EXPECT_EQ(offset_of(peer.send_parts, rank), moved.send_first);
        }
        const int times = gets(op, rank, spec.root) ? 1 : 0;
        EXPECT_EQ(std::count(covered.begin(), covered.end(), times),
                  static_cast<long>(covered.size()))
            << op_name(op) << " rank " << rank << " of " << ranks;
      }
    }
  }
}

TEST(PerfOperation, InPlaceLiesWithinTheBuffer) {
  for (const Op op : kAll) {
    if (!has_in_place(op)) continue;
    for (int rank = 0; rank < 5; ++rank) {
      const Shape shape = shape_of(op, 1000, 2, rank, 5);
      std::vector<std::byte> base(shape.larger() * 2);
      const Buffers buffers = in_place_buffers(op, base.data(), shape, 2, rank);
      const auto offset = [&](const void* p) {
        return static_cast<size_t>(static_cast<const std::byte*>(p) - base.data());
      };
      EXPECT_LE(offset(buffers.send) + shape.send * 2, base.size()) << op_name(op);
      EXPECT_LE(offset(buffers.recv) + shape.recv * 2, base.size()) << op_name(op);
      EXPECT_TRUE(buffers.send == base.data() || buffers.recv == base.data());
    }
  }
}

}  // namespace
}  // namespace zbccl::tools
