// A list of cases on every rank of a job, and the jobs that fused operations are tested in.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "support/connect.h"
#include "support/job.h"

namespace zbccl::test {

// Calls run(rank, comm, case, number) for each case, until one fails; what is being done is said by
// describe(case).
template <typename Case, typename Describe, typename Run>
void run_cases(const JobOptions& options, const std::vector<Case>& cases, Describe describe,
               Run run) {
  run_job(options, [&](Rank& rank) {
    Communicator comm = connect(rank);
    for (size_t i = 0; i < cases.size() && !testing::Test::HasFailure(); ++i) {
      const std::string text = describe(cases[i]);
      SCOPED_TRACE(text);
      rank.note(text);
      run(rank, comm, cases[i], static_cast<uint64_t>(i));
    }
    comm.destroy();
  });
}

// Ranks as threads and as processes, by one-shot only and without it.
using ByAlgorithm = std::tuple<Mode, int, const char*>;  // and ZBCCL_ONE_SHOT_MAX

inline auto every_algorithm() {
  return testing::Combine(testing::Values(Mode::kThreads, Mode::kProcesses),
                          testing::Values(1, 2, 3, 5), testing::Values("1", "1M"));
}

inline std::string algorithm_name(const testing::TestParamInfo<ByAlgorithm>& test) {
  const auto& [mode, ranks, one_shot_max] = test.param;
  return std::string(mode_name(mode)) + std::to_string(ranks) +
         (std::string(one_shot_max) == "1" ? "TwoShot" : "OneShot");
}

inline JobOptions job_of(const ByAlgorithm& parameters) {
  const auto& [mode, ranks, one_shot_max] = parameters;
  JobOptions options{.ranks = ranks, .mode = mode};
  options.env = {{"ZBCCL_ONE_SHOT_MAX", one_shot_max}};
  return options;
}

}  // namespace zbccl::test
