// The typed calls of zbccl.hpp: what they infer, and sizes that do not fit each other.
#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

#include "support/connect.h"

namespace zbccl::test {
namespace {

template <typename T>
class Typed : public testing::Test {};
using Types = testing::Types<float, double, int8_t, uint8_t, int16_t, uint16_t, int32_t, uint32_t,
                             int64_t, uint64_t>;
TYPED_TEST_SUITE(Typed, Types);

constexpr size_t kRanks = 3;

template <typename T>
std::span<const T> view(const std::vector<T>& values) {
  return values;
}

TYPED_TEST(Typed, EveryOperation) {
  using T = TypeParam;
  run_job({.ranks = kRanks, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const auto me = static_cast<size_t>(rank.rank());
    const std::vector<T> ones(6, T{1});
    const std::vector<T> mine(2, static_cast<T>(me));
    std::vector<T> out(6);
    comm.all_reduce(view(ones), std::span<T>(out), zbcclSum);
    EXPECT_EQ(std::vector<T>(6, T{3}), out);
    comm.all_gather(view(mine), std::span<T>(out));
    const std::vector<T> in_order = {T{0}, T{0}, T{1}, T{1}, T{2}, T{2}};
    EXPECT_EQ(in_order, out);
    std::vector<T> part(2);
    comm.reduce_scatter(view(in_order), std::span<T>(part), zbcclMax);
    EXPECT_EQ(mine, part);
    out.assign(6, static_cast<T>(7));
    comm.reduce(view(ones), std::span<T>(out), 2, zbcclSum);
    EXPECT_EQ(std::vector<T>(6, me == 2 ? T{3} : static_cast<T>(7)), out);
    comm.gather(view(mine), std::span<T>(out), 1);
    EXPECT_EQ(me == 1 ? in_order : std::vector<T>(6, me == 2 ? T{3} : static_cast<T>(7)), out);
    comm.scatter(view(in_order), std::span<T>(part), 0);
    EXPECT_EQ(mine, part);
    comm.broadcast(std::span<T>(part), 1);
    EXPECT_EQ(std::vector<T>(2, T{1}), part);
    comm.all_to_all(view(in_order), std::span<T>(out));
    EXPECT_EQ(std::vector<T>(6, static_cast<T>(me)), out);
    comm.destroy();
  });
}

TYPED_TEST(Typed, PerRankSizes) {
  using T = TypeParam;
  run_job({.ranks = kRanks, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const auto me = static_cast<size_t>(rank.rank());
    const std::vector<size_t> counts = {0, 1, 2};
    const std::vector<T> mine(counts[me], static_cast<T>(me));
    std::vector<T> out(3);
    const std::vector<T> in_order = {T{1}, T{2}, T{2}};
    comm.all_gather_v(view(mine), std::span<T>(out), counts);
    EXPECT_EQ(in_order, out);
    std::vector<T> part(counts[me]);
    comm.reduce_scatter_v(view(in_order), std::span<T>(part), counts, zbcclMin);
    EXPECT_EQ(mine, part);
    const std::vector<size_t> received(3, counts[me]);
    std::vector<T> exchanged(3 * counts[me]);
    comm.all_to_all_v(view(in_order), counts, std::span<T>(exchanged), received);
    EXPECT_EQ(std::vector<T>(3 * counts[me], static_cast<T>(me)), exchanged);
    comm.destroy();
  });
}

TEST(TypedSizes, ThatDoNotFitAreRefused) {
  run_job({.ranks = kRanks, .mode = Mode::kThreads}, [](Rank& rank) {
    Communicator comm = connect(rank);
    const int me = rank.rank();
    const std::vector<float> in(6);
    std::vector<float> out(7);
    const std::vector<size_t> counts = {2, 2, 2};
    const auto i = view(in);
    const std::span<float> o(out);
    EXPECT_THROW(comm.all_reduce(i, o), std::invalid_argument);
    EXPECT_THROW(comm.all_gather(i, o), std::invalid_argument);
    EXPECT_THROW(comm.reduce_scatter(i, o), std::invalid_argument);
    EXPECT_THROW(comm.reduce(i, o, me), std::invalid_argument);
    EXPECT_THROW(comm.gather(i, o, me), std::invalid_argument);
    EXPECT_THROW(comm.scatter(i, o, me), std::invalid_argument);
    EXPECT_THROW(comm.all_to_all(i, o), std::invalid_argument);
    EXPECT_THROW(comm.all_gather_v(i, o, counts), std::invalid_argument);
    EXPECT_THROW(comm.all_gather_v(i, o, Sizes(counts).first(2)), std::invalid_argument);
    EXPECT_THROW(comm.reduce_scatter_v(i, o, counts), std::invalid_argument);
    EXPECT_THROW(comm.all_to_all_v(i, counts, o, counts), std::invalid_argument);
    EXPECT_THROW(comm.all_to_all_v(i, Sizes(counts).first(2), o.first(6), counts),
                 std::invalid_argument);
    comm.barrier();
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
