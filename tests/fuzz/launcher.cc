// The variables of launchers. Each line: a letter that chooses one, and its value.
#include "bootstrap/launcher.h"

#include <array>
#include <cstring>

#include "fuzz.h"

using namespace zbccl::bootstrap;
using zbccl::fuzz::require;

namespace {

constexpr std::array kNames = {"ZBCCL_RANK",
                               "ZBCCL_WORLD_SIZE",
                               "ZBCCL_LOCAL_RANK",
                               "ZBCCL_UNIQUE_ID",
                               "RANK",
                               "WORLD_SIZE",
                               "LOCAL_RANK",
                               "LOCAL_WORLD_SIZE",
                               "TORCHELASTIC_RUN_ID",
                               "SLURM_PROCID",
                               "SLURM_STEP_NUM_TASKS",
                               "SLURM_NTASKS",
                               "SLURM_NPROCS",
                               "SLURM_LOCALID",
                               "SLURM_STEP_NUM_NODES",
                               "SLURM_NNODES",
                               "SLURM_JOB_ID",
                               "SLURM_STEP_ID",
                               "OMPI_COMM_WORLD_RANK",
                               "OMPI_COMM_WORLD_SIZE",
                               "OMPI_COMM_WORLD_LOCAL_RANK",
                               "OMPI_COMM_WORLD_LOCAL_SIZE",
                               "PMIX_NAMESPACE",
                               "PMI_RANK",
                               "PMI_SIZE",
                               "PMI_JOBID",
                               "MPI_LOCALRANKID",
                               "MPI_LOCALNRANKS",
                               "MASTER_PORT"};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  for (const char* name : kNames) ::unsetenv(name);
  zbccl::fuzz::Input input(data, size);
  while (!input.done()) {
    const std::string_view line = input.line();
    if (line.empty()) continue;
    const auto letter = static_cast<size_t>(static_cast<uint8_t>(line[0]));
    const std::string value(line.substr(1));
    ::setenv(kNames[(letter - 'A') % kNames.size()], value.c_str(), 1);
  }
  const auto placement = find_placement();
  if (placement.ok() && *placement) {
    const Placement& me = **placement;
    require(me.nranks >= 1 && me.rank >= 0 && me.rank < me.nranks, "a rank is within its world");
    require(me.local_rank >= -1, "a local rank is one or unknown");
  }
  if (!placement.ok()) require(!placement.status().message().empty(), "an error says why");
  const auto port = port_variable("MASTER_PORT");
  if (port.ok()) require(*port != 0, "a port is not 0");
  return 0;
}
