#include "measure/ranks.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <initializer_list>
#include <stdexcept>

#include "command.h"
#include "launch/launcher.h"
#include "launch/program.h"

namespace zbccl::tools {
namespace {

bool all_set(std::initializer_list<const char*> names) {
  return std::all_of(names.begin(), names.end(), [](const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0';
  });
}

// This process's command line as it stands: the ranks read it again.
std::vector<std::string> own_arguments() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> arguments;
  for (std::string argument; std::getline(file, argument, '\0');) arguments.push_back(argument);
  if (arguments.empty())
    throw std::runtime_error("/proc/self/cmdline cannot be read; is /proc mounted?");
  return arguments;
}

std::vector<uint64_t> reduced(Communicator& comm, const std::vector<uint64_t>& values,
                              zbcclRedOp_t op) {
  Buffer<uint64_t> shared(values.size());
  std::copy(values.begin(), values.end(), shared.begin());
  comm.all_reduce(shared.span(), op);
  return {shared.begin(), shared.end()};
}

}  // namespace

bool in_job() {
  return all_set({"ZBCCL_RANK", "ZBCCL_WORLD_SIZE"}) ||
         all_set({"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}) ||
         all_set({"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"}) ||
         all_set({"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}) ||
         all_set({"PMI_RANK", "PMI_SIZE"});
}

int start_ranks(const std::string& caller, int ranks) {
  Job job;
  job.caller = caller;
  job.program = own_path();
  job.arguments = own_arguments();
  job.ranks = ranks;
  job.prefix = false;
  return launch(job);
}

int run_rank(const std::string& caller, int asked,
             const std::function<bool(Communicator& comm, double init_ms)>& work) {
  int rank = -1;
  try {
    const auto begin = std::chrono::steady_clock::now();
    Communicator comm = Communicator::from_environment();
    const std::chrono::duration<double, std::milli> init = std::chrono::steady_clock::now() - begin;
    rank = comm.rank();
    if (asked != 0 && asked != comm.size()) {
      // Nobody leaves while another is still joining, which would be that one's error.
      const int size = comm.size();
      comm.barrier();
      comm.destroy();
      throw UsageError(
          fmt::format("--ranks {}: this job has {} ranks; leave the option out", asked, size));
    }
    const bool done = work(comm, init.count());
    comm.destroy();
    return done ? kSuccess : kFailure;
  } catch (const UsageError&) {
    throw;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: rank %d: %s\n", caller.c_str(), rank, error.what());
    return kFailure;
  }
}

std::vector<uint64_t> sum_over_ranks(Communicator& comm, const std::vector<uint64_t>& values) {
  return reduced(comm, values, zbcclSum);
}

std::vector<uint64_t> max_over_ranks(Communicator& comm, const std::vector<uint64_t>& values) {
  return reduced(comm, values, zbcclMax);
}

double slowest_rank(Communicator& comm, double value) {
  Buffer<double> slowest(1);
  slowest[0] = value;
  comm.all_reduce(slowest.span(), zbcclMax);
  return slowest[0];
}

std::vector<std::string> exchange_texts(Communicator& comm, const std::string& text) {
  const auto ranks = static_cast<size_t>(comm.size());
  const size_t slot = sizeof(uint64_t) + max_over_ranks(comm, {text.size()})[0];
  Buffer<std::byte> mine(slot);
  Buffer<std::byte> all(slot * ranks);
  const uint64_t size = text.size();
  std::memcpy(mine.data(), &size, sizeof size);
  std::memcpy(mine.data() + sizeof size, text.data(), text.size());
  comm.all_gather(mine.data(), all.data(), slot, zbcclUint8);
  std::vector<std::string> texts;
  texts.reserve(ranks);
  for (const std::byte* at = all.begin(); at != all.end(); at += slot) {
    uint64_t length = 0;
    std::memcpy(&length, at, sizeof length);
    texts.emplace_back(reinterpret_cast<const char*>(at + sizeof length), length);
  }
  return texts;
}

}  // namespace zbccl::tools
