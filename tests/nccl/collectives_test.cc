// Every collective on host memory, bit for bit: types, operators, sizes, in place.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "nccl/ranks.h"
#include "support/reference.h"

namespace zbccl::test {
namespace {

constexpr int kTypes = ncclNumTypes;
constexpr int kOps = ncclNumOps;

std::vector<std::byte> input_of(int rank, size_t count, ncclDataType_t type, uint64_t seed) {
  std::vector<std::byte> data(count * element_size(own_type(type)));
  fill(data.data(), count, own_type(type), Fill::kRandom,
       seed_of(seed, static_cast<uint64_t>(rank)));
  return data;
}

// What the sum (or what `op` is) over all ranks' inputs of `count` elements is.
std::vector<std::byte> reduced(int ranks, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               uint64_t seed) {
  std::vector<std::vector<std::byte>> inputs;
  std::vector<const void*> pointers;
  for (int r = 0; r < ranks; ++r) inputs.push_back(input_of(r, count, type, seed));
  for (const auto& input : inputs) pointers.push_back(input.data());
  std::vector<std::byte> out(inputs.front().size());
  reference_reduce(pointers, out.data(), count, own_type(type), own_op(op));
  return out;
}

std::vector<std::byte> slice(const std::vector<std::byte>& all, size_t index, size_t parts) {
  const size_t bytes = all.size() / parts;
  const auto at = all.begin() + static_cast<std::ptrdiff_t>(index * bytes);
  return {at, at + static_cast<std::ptrdiff_t>(bytes)};
}

void put(Buffer& buffer, size_t at, const std::vector<std::byte>& data) {
  std::memcpy(buffer.data() + at, data.data(), data.size());
}

// One rank's view of a job.
struct Case {
  ncclComm_t comm;
  int rank;
  int ranks;
  ncclDataType_t type = ncclFloat32;
  size_t count = 0;
  bool in_place = false;
  uint64_t seed = 0;

  size_t bytes() const { return count * element_size(own_type(type)); }
  size_t n() const { return static_cast<size_t>(ranks); }
  size_t me() const { return static_cast<size_t>(rank); }
  std::vector<std::byte> input(int of, size_t elements) const {
    return input_of(of, elements, type, seed);
  }
};

void all_reduce(const Case& c, ncclRedOp_t op) {
  const auto in = c.input(c.rank, c.count);
  Buffer out(c.bytes());
  if (c.in_place) put(out, 0, in);
  check(ncclAllReduce(c.in_place ? out.data() : in.data(), out.data(), c.count, c.type, op, c.comm,
                      nullptr));
  out.expect(reduced(c.ranks, c.count, c.type, op, c.seed), "all_reduce");
}

void reduce_scatter(const Case& c, ncclRedOp_t op) {
  const auto in = c.input(c.rank, c.count * c.n());
  const auto want = slice(reduced(c.ranks, c.count * c.n(), c.type, op, c.seed), c.me(), c.n());
  if (!c.in_place) {
    Buffer out(c.bytes());
    check(ncclReduceScatter(in.data(), out.data(), c.count, c.type, op, c.comm, nullptr));
    return out.expect(want, "reduce_scatter");
  }
  Buffer both(in.size());
  put(both, 0, in);
  check(ncclReduceScatter(both.data(), both.data() + c.me() * c.bytes(), c.count, c.type, op,
                          c.comm, nullptr));
  auto all = in;
  std::copy(want.begin(), want.end(),
            all.begin() + static_cast<std::ptrdiff_t>(c.me() * c.bytes()));
  both.expect(all, "reduce_scatter in place");
}

void reduce(const Case& c, ncclRedOp_t op) {
  const int root = c.ranks - 1;
  const auto in = c.input(c.rank, c.count);
  Buffer out(c.bytes());
  if (c.in_place) put(out, 0, in);
  const bool null = c.rank != root && !c.in_place;  // as NCCL allows
  check(ncclReduce(c.in_place ? out.data() : in.data(), null ? nullptr : out.data(), c.count,
                   c.type, op, root, c.comm, nullptr));
  if (c.rank == root) {
    out.expect(reduced(c.ranks, c.count, c.type, op, c.seed), "reduce");
  } else {
    out.expect(c.in_place ? in : std::vector<std::byte>(c.bytes(), std::byte{0xa5}),
               "not the root");
  }
}

std::vector<std::byte> gathered(const Case& c) {
  std::vector<std::byte> all;
  for (int r = 0; r < c.ranks; ++r) {
    const auto one = c.input(r, c.count);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

void all_gather(const Case& c) {
  const auto in = c.input(c.rank, c.count);
  Buffer out(c.bytes() * c.n());
  if (c.in_place) put(out, c.me() * c.bytes(), in);
  check(ncclAllGather(c.in_place ? out.data() + c.me() * c.bytes() : in.data(), out.data(), c.count,
                      c.type, c.comm, nullptr));
  out.expect(gathered(c), "all_gather");
}

void gather(const Case& c) {
  const int root = c.ranks / 2;
  const auto in = c.input(c.rank, c.count);
  Buffer out(c.rank == root ? c.bytes() * c.n() : 0);
  check(ncclGather(in.data(), c.rank == root ? out.data() : nullptr, c.count, c.type, root, c.comm,
                   nullptr));
  out.expect(c.rank == root ? gathered(c) : std::vector<std::byte>(), "gather");
}

void broadcast(const Case& c) {
  const int root = c.ranks / 2;
  const auto sent = c.input(root, c.count);
  Buffer out(c.bytes());
  if (c.in_place) {
    if (c.rank == root) put(out, 0, sent);
    check(ncclBcast(out.data(), c.count, c.type, root, c.comm, nullptr));
  } else {
    check(ncclBroadcast(c.rank == root ? sent.data() : nullptr, out.data(), c.count, c.type, root,
                        c.comm, nullptr));
  }
  out.expect(sent, "broadcast");
}

void scatter(const Case& c) {
  const int root = c.ranks - 1;
  const auto sent = c.input(root, c.count * c.n());
  Buffer out(c.bytes());
  check(ncclScatter(c.rank == root ? sent.data() : nullptr, out.data(), c.count, c.type, root,
                    c.comm, nullptr));
  out.expect(slice(sent, c.me(), c.n()), "scatter");
}

void all_to_all(const Case& c) {
  const auto in = c.input(c.rank, c.count * c.n());
  Buffer out(in.size());
  if (c.in_place) put(out, 0, in);
  check(ncclAlltoAll(c.in_place ? out.data() : in.data(), out.data(), c.count, c.type, c.comm,
                     nullptr));
  std::vector<std::byte> want;
  for (int r = 0; r < c.ranks; ++r) {
    const auto block = slice(c.input(r, c.count * c.n()), c.me(), c.n());
    want.insert(want.end(), block.begin(), block.end());
  }
  out.expect(want, "all_to_all");
}

// To everyone and from everyone, this rank itself too, as frameworks make an all-to-all of it.
void exchange(const Case& c) {
  const auto in = c.input(c.rank, c.count * c.n());
  Buffer out(in.size());
  check(ncclGroupStart());
  for (int r = 0; r < c.ranks; ++r) {
    const size_t at = static_cast<size_t>(r) * c.bytes();
    check(ncclSend(in.data() + at, c.count, c.type, r, c.comm, nullptr));
    check(ncclRecv(out.data() + at, c.count, c.type, r, c.comm, nullptr));
  }
  check(ncclGroupEnd());
  std::vector<std::byte> want;
  for (int r = 0; r < c.ranks; ++r) {
    const auto block = slice(c.input(r, c.count * c.n()), c.me(), c.n());
    want.insert(want.end(), block.begin(), block.end());
  }
  out.expect(want, "sends and receives");
}

class Collectives : public testing::TestWithParam<std::tuple<Mode, int>> {};
INSTANTIATE_TEST_SUITE_P(Ranks, Collectives,
                         testing::Combine(testing::Values(Mode::kThreads, Mode::kProcesses),
                                          testing::Values(1, 2, 3, 6)),
                         [](const auto& test) {
                           return std::string(mode_name(std::get<0>(test.param))) +
                                  std::to_string(std::get<1>(test.param));
                         });

TEST_P(Collectives, EveryTypeAndOperator) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode}, [](Rank& rank) {
    const Comm comm = connect(rank);
    Case c{comm, rank.rank(), rank.size()};
    for (int type = 0; type < kTypes; ++type) {
      for (int op = 0; op < kOps; ++op) {
        for (const size_t count : {size_t{1}, size_t{259}}) {
          c.type = static_cast<ncclDataType_t>(type);
          c.count = count;
          c.in_place = (type + op) % 2 == 0;
          ++c.seed;
          SCOPED_TRACE(testing::Message() << "type " << type << " op " << op << " count " << count);
          all_reduce(c, static_cast<ncclRedOp_t>(op));
          reduce_scatter(c, static_cast<ncclRedOp_t>(op));
          reduce(c, static_cast<ncclRedOp_t>(op));
        }
      }
    }
  });
}

TEST_P(Collectives, EveryMovement) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode}, [](Rank& rank) {
    const Comm comm = connect(rank);
    Case c{comm, rank.rank(), rank.size()};
    for (int type = 0; type < kTypes; ++type) {
      for (const size_t count : {size_t{1}, size_t{7}, size_t{4099}}) {
        for (const bool in_place : {false, true}) {
          c.type = static_cast<ncclDataType_t>(type);
          c.count = count;
          c.in_place = in_place;
          ++c.seed;
          SCOPED_TRACE(testing::Message() << "type " << type << " count " << count);
          all_gather(c);
          broadcast(c);
          all_to_all(c);
          if (in_place) continue;
          gather(c);
          scatter(c);
          exchange(c);
        }
      }
    }
  });
}

TEST_P(Collectives, Large) {
  const auto [mode, ranks] = GetParam();
  run_job({.ranks = ranks, .mode = mode}, [](Rank& rank) {
    const Comm comm = connect(rank);
    Case c{comm, rank.rank(), rank.size(), ncclBfloat16, 300'001, false, 77};
    all_reduce(c, ncclSum);
    c.in_place = true;
    all_reduce(c, ncclAvg);
    reduce_scatter(c, ncclMax);
    all_gather(c);
  });
}

// As in NCCL: what moves nothing meets nobody, and its buffers are not looked at.
TEST(CollectivesOfNothing, WaitForNobody) {
  run_job({.ranks = 2}, [](Rank& rank) {
    const Comm comm = connect(rank);
    if (rank.rank() == 0) {
      check(ncclAllReduce(nullptr, nullptr, 0, ncclFloat32, ncclSum, comm, nullptr));
      check(ncclSend(nullptr, 0, ncclFloat32, 1, comm, nullptr));
      check(ncclGroupStart());
      check(ncclRecv(nullptr, 0, ncclFloat32, 1, comm, nullptr));
      check(ncclGroupEnd());
    }
    expect_sum(comm, rank.rank(), rank.size());
  });
}

// Blocks of the library's own memory, through the interface's names.
TEST(Memory, OfThePool) {
  run_job({.ranks = 3}, [](Rank& rank) {
    const Comm comm = connect(rank);
    void* block = nullptr;
    check(ncclMemAlloc(&block, 4096));
    auto* const values = static_cast<float*>(block);
    std::fill_n(values, 1024, static_cast<float>(rank.rank()));
    void* handle = nullptr;
    check(ncclCommRegister(comm, block, 4096, &handle));
    ncclWindow_t window = nullptr;
    check(ncclCommWindowRegister(comm, block, 4096, &window, NCCL_WIN_COLL_SYMMETRIC));
    EXPECT_NE(nullptr, window);
    check(ncclAllReduce(block, block, 1024, ncclFloat32, ncclSum, comm, nullptr));
    EXPECT_TRUE(std::all_of(values, values + 1024, [](float v) { return v == 3.0F; }));
    zbcclMemReport_t report = {sizeof report};
    ASSERT_EQ(zbcclSuccess, zbcclMemGetReport(&report));
    EXPECT_EQ(0U, report.staged_bytes);
    check(ncclCommWindowDeregister(comm, window));
    check(ncclCommDeregister(comm, handle));
    expect_refused(ncclInvalidArgument, ncclCommDeregister(comm, handle), {"no registration"});
    check(ncclMemFree(block));
    check(ncclMemFree(nullptr));
    expect_refused(ncclInvalidArgument, ncclMemFree(&rank));
  });
}

}  // namespace
}  // namespace zbccl::test
