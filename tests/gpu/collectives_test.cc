// Every operation on device memory over type, operator, size, placement, kind of memory and
// algorithm, to the last bit: with a GPU for each rank, and with all ranks on one GPU.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include "gpu/gpu_case_runner.h"

namespace zbccl::test {
namespace {

using std::chrono::seconds;

constexpr size_t kMegabytes = size_t{12} << 20;

// All that rank 0's choice of algorithm can be forced to; where one does not serve a call, the plan
// takes another.
constexpr const char* kAlgorithms[] = {
    "auto",      "one_shot", "two_shot", "two_shot_direct", "chunked",     "pull", "push",
    "push_bulk", "relay",    "inline",   "chain",           "copy_engine", "swap", "ring"};

// Algorithms are read when a communicator is made. Between two meetings: ranks may be threads.
Communicator connect_with(GpuRank& rank, const char* algorithm) {
  rank.settle();
  if (rank.rank() == 0 || rank.place() == Place::kGpuEach) {
    ::setenv("ZBCCL_ALGORITHM", algorithm, 1);
  }
  rank.meet();
  Communicator comm = rank.connect();
  rank.settle();
  return comm;
}

void finish(GpuRank& rank, Communicator& comm) {
  rank.settle();
  comm.destroy();
  rank.settle();
}

using Where = std::tuple<Place, int>;
std::string where_name(const testing::TestParamInfo<Where>& test) {
  return std::string(place_name(std::get<0>(test.param))) + std::to_string(std::get<1>(test.param));
}

class Collectives : public testing::TestWithParam<Where> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Collectives,
                         testing::Combine(testing::Values(Place::kGpuEach),
                                          testing::Values(1, 2, 3, 4, 5, 8)),
                         where_name);
INSTANTIATE_TEST_SUITE_P(GpuThreads, Collectives,
                         testing::Combine(testing::Values(Place::kThreads), testing::Values(2, 4)),
                         where_name);
INSTANTIATE_TEST_SUITE_P(OneGpu, Collectives,
                         testing::Combine(testing::Values(Place::kOneGpu), testing::Range(2, 9)),
                         where_name);

// All cases where every rank has a GPU and a process; a part of them elsewhere.
size_t small_step(Place place, int ranks) {
  if (place == Place::kGpuEach) return ranks <= 2 ? 1 : 2;
  return place == Place::kThreads ? 11 : static_cast<size_t>(8 + 3 * ranks);
}

void run_small(GpuRank& rank, GpuCaseRunner& runner) {
  const size_t step = small_step(rank.place(), rank.size());
  runner.run_all(sample(small_cases(rank.size()), step));
  // Zeros of both signs, infinities, NaN and denormals everywhere: a mark in the data must not be
  // mistaken for data, nor data for a mark.
  std::vector<Case> special = sample(small_cases(rank.size()), 5 * step, 2);
  for (Case& test : special) test.fill = Fill::kSpecial;
  runner.run_all(special);
}

// Below, at and above sizes where algorithms and grids change.
void run_around_thresholds(GpuRank& rank, GpuCaseRunner& runner) {
  const size_t factor = rank.place() == Place::kGpuEach ? 1 : 5;
  for (const size_t kib : {4, 16, 64, 128, 256, 512, 1024, 2048}) {
    const size_t step = kib <= 256 ? 2 : kib <= 1024 ? 9 : 17;
    runner.run_all(sample(threshold_cases(kib << 10, rank.size()), factor * step, kib));
  }
}

void run_large(GpuRank& rank, GpuCaseRunner& runner) {
  runner.run_all(sample(large_cases(rank.size()), rank.place() == Place::kGpuEach ? 1 : 3));
  // Several megabytes, beyond what landing memory holds in one piece.
  constexpr size_t kCount = (size_t{5} << 20) + 3;
  runner.run({.type = zbcclBfloat16, .count = kCount, .offset = 1});
  runner.run({.type = zbcclFloat64, .count = kCount / 4, .in_place = true});
  runner.run({.operation = Operation::kBroadcast,
              .type = zbcclUint8,
              .count = 2 * kCount,
              .offset = 3,
              .memory = Memory::kAlternate});
}

TEST_P(Collectives, EveryCase) {
  const auto [place, ranks] = GetParam();
  ZBCCL_NEED_GPUS(place, ranks);
  run_gpu_job({.ranks = ranks, .place = place, .deadline = seconds(120)}, [](GpuRank& rank) {
    GpuCaseRunner runner(rank, kMegabytes, 1);
    Communicator comm = connect_with(rank, "auto");
    runner.use(comm);
    run_small(rank, runner);
    run_around_thresholds(rank, runner);
    run_large(rank, runner);
    finish(rank, comm);
  });
}

// Each algorithm by force, on one set of cases: the same bits from all.
class Algorithms : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Algorithms,
                         testing::Values(Place::kGpuEach, Place::kThreads, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

TEST_P(Algorithms, SameBits) {
  const Place place = GetParam();
  ZBCCL_NEED_GPUS(place, 2);
  for (const int ranks : {2, ranks_at(place, 4)}) {
    run_gpu_job({.ranks = ranks, .place = place, .deadline = seconds(120)}, [](GpuRank& rank) {
      const bool all = rank.place() == Place::kGpuEach;
      std::vector<uint64_t> hashes;
      for (const char* algorithm : kAlgorithms) {
        GpuCaseRunner runner(rank, kMegabytes, 4);
        Communicator comm = connect_with(rank, algorithm);
        runner.use(comm);
        rank.note(algorithm);
        runner.run_all(sample(small_cases(rank.size()), all ? 13 : 53));
        for (const size_t kib : {64, 512}) {
          runner.run_all(sample(threshold_cases(kib << 10, rank.size()), all ? 7 : 23));
        }
        runner.run_all(sample(large_cases(rank.size()), all ? 2 : 7));
        hashes.push_back(runner.hash());
        finish(rank, comm);
      }
      for (const uint64_t hash : hashes) EXPECT_EQ(hashes[0], hash);
    });
  }
}

// How many thread blocks a call may use changes nothing in its result.
TEST_P(Algorithms, AnyNumberOfBlocks) {
  const Place place = GetParam();
  ZBCCL_NEED_GPUS(place, 2);
  run_gpu_job({.ranks = 2, .place = place}, [](GpuRank& rank) {
    std::vector<uint64_t> hashes;
    for (const int blocks : {1, 3, 8}) {
      GpuCaseRunner runner(rank, kMegabytes, 5);
      zbcclConfig_t config = rank.config();
      config.max_blocks = blocks;
      Communicator comm = rank.connect(config);
      rank.settle();
      runner.use(comm);
      runner.run_all(sample(small_cases(2), 97));
      runner.run_all(sample(threshold_cases(256 << 10, 2), 11));
      runner.run_all(sample(large_cases(2), 5));
      hashes.push_back(runner.hash());
      finish(rank, comm);
    }
    for (const uint64_t hash : hashes) EXPECT_EQ(hashes[0], hash);
  });
}

// Every alignment of a buffer within a cache line and every length of a tail.
TEST_P(Algorithms, UnalignedHeadsAndTails) {
  const Place place = GetParam();
  ZBCCL_NEED_GPUS(place, 2);
  run_gpu_job({.ranks = ranks_at(place, 3), .place = place}, [](GpuRank& rank) {
    GpuCaseRunner runner(rank, size_t{64} << 10, 6);
    Communicator comm = connect_with(rank, "auto");
    runner.use(comm);
    for (const zbcclDataType_t type : {zbcclUint8, zbcclBfloat16, zbcclFloat32}) {
      for (size_t i = 0; i < 70; ++i) {
        runner.run({.type = type, .count = 64 + i, .offset = i % 16, .in_place = i % 2 == 0});
        for (const Operation operation :
             {Operation::kAllGather, Operation::kReduceScatter, Operation::kAllToAll}) {
          runner.run({.operation = operation,
                      .type = type,
                      .count = 1 + i,
                      .offset = i % 16,
                      .memory = i % 3 == 0 ? Memory::kPlain : Memory::kRegistered});
        }
      }
    }
    finish(rank, comm);
  });
}

TEST_P(Algorithms, EveryRoot) {
  const Place place = GetParam();
  ZBCCL_NEED_GPUS(place, 2);
  run_gpu_job({.ranks = ranks_at(place, 4), .place = place}, [](GpuRank& rank) {
    GpuCaseRunner runner(rank, kMegabytes, 7);
    Communicator comm = connect_with(rank, "auto");
    runner.use(comm);
    for (const size_t count : {size_t{3}, size_t{50'000}, size_t{400'000}}) {
      for (int root = 0; root < rank.size(); ++root) {
        for (Case test : every_operation(Memory::kAlternate, count, rank.size())) {
          if (!has_root(test.operation)) continue;
          test.root = root;
          runner.run(test);
        }
      }
    }
    finish(rank, comm);
  });
}

// Blocks of all sizes around those where halves, tiles and words end, at any alignment, are swapped
// where they lie; nothing is staged, which the runner checks.
TEST_P(Algorithms, ExchangesInPlace) {
  const Place place = GetParam();
  ZBCCL_NEED_GPUS(place, 2);
  for (const int ranks : {2, ranks_at(place, 4)}) {
    run_gpu_job({.ranks = ranks, .place = place}, [](GpuRank& rank) {
      GpuCaseRunner runner(rank, kMegabytes, 12);
      Communicator comm = connect_with(rank, "swap");
      runner.use(comm);
      const zbcclDataType_t types[] = {zbcclUint8, zbcclBfloat16, zbcclFloat64};
      size_t i = 0;
      for (const size_t count : {1, 2, 15, 16, 17, 31, 33, 8191, 8192, 8193, 65'535, 65'539}) {
        for (const size_t offset : {0, 1}) {
          runner.run({.operation = Operation::kAllToAll,
                      .type = types[i++ % 3],
                      .count = count,
                      .offset = offset,
                      .in_place = true});
          EXPECT_STREQ("swap", comm.last_algorithm());
        }
      }
      runner.run({.operation = Operation::kAllToAll,
                  .type = zbcclUint8,
                  .count = kMegabytes / static_cast<size_t>(rank.size()) - 7,
                  .in_place = true,
                  .memory = Memory::kAlternate});
      finish(rank, comm);
      // As the plan has it: the small ones go through landing memory.
      comm = connect_with(rank, "auto");
      runner.use(comm);
      for (const size_t count : {100, 200'000}) {
        runner.run({.operation = Operation::kAllToAll, .count = count, .in_place = true});
        EXPECT_STREQ(count == 100 ? "inline" : "swap", comm.last_algorithm());
      }
      finish(rank, comm);
    });
  }
}

}  // namespace
}  // namespace zbccl::test
