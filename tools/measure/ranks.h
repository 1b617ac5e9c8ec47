// The ranks of a benchmark, and what they tell each other. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>
#include <zbccl/zbccl.hpp>

namespace zbccl::tools {

// True if a launcher has started this process as one of several: it then joins that job.
bool in_job();

// Starts `ranks` processes with this one's command line and waits for them. Each is a fresh
// program: nothing of this process is inherited but its environment. Returns the exit code.
int start_ranks(const std::string& caller, int ranks);

// Makes the communicator of the job that this process is in and gives it to `work`, with the
// milliseconds that this took. `asked`: what --ranks said, 0 for nothing. Returns the exit code:
// whether `work` did. Throws UsageError.
int run_rank(const std::string& caller, int asked,
             const std::function<bool(Communicator& comm, double init_ms)>& work);

// Collective.
std::vector<uint64_t> sum_over_ranks(Communicator& comm, const std::vector<uint64_t>& values);
std::vector<uint64_t> max_over_ranks(Communicator& comm, const std::vector<uint64_t>& values);
double slowest_rank(Communicator& comm, double value);
// Collective: every rank's text, by rank.
std::vector<std::string> exchange_texts(Communicator& comm, const std::string& text);

}  // namespace zbccl::tools
