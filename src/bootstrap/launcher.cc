#include "bootstrap/launcher.h"

#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <iterator>

#include "base/log.h"

namespace zbccl::bootstrap {
namespace {

constexpr int kMaxRanks = 65536;

Result<std::optional<int>> number(const char* name) {
  const auto text = variable(name);
  if (!text) return std::optional<int>();
  int value = 0;
  const char* end = text->data() + text->size();
  const auto parsed = std::from_chars(text->data(), end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end) {
    return error(Code::kInvalidUsage, "{} is \"{}\", expected an integer", name, *text);
  }
  return std::optional<int>(value);
}

// The first of several names for one thing that is set.
Result<std::optional<int>> first_number(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    ZBCCL_ASSIGN_OR_RETURN(const auto value, number(name));
    if (value) return value;
  }
  return std::optional<int>();
}

Status missing(Launcher launcher, const char* present, const char* absent) {
  return error(Code::kInvalidUsage, "{} is set but {} is not: {} sets both; set {} or unset {}",
               present, absent, launcher_name(launcher), absent, present);
}

// Rank and size under the names that this launcher gives them; nothing if there is no rank.
Result<std::optional<Placement>> place(Launcher launcher, const char* rank_name,
                                       std::initializer_list<const char*> size_names,
                                       const char* local_name) {
  ZBCCL_ASSIGN_OR_RETURN(const auto rank, number(rank_name));
  if (!rank) return std::optional<Placement>();
  ZBCCL_ASSIGN_OR_RETURN(const auto size, first_number(size_names));
  if (!size) return missing(launcher, rank_name, *size_names.begin());
  const char* size_name = *size_names.begin();
  if (*size < 1 || *size > kMaxRanks) {
    return error(Code::kInvalidUsage, "{} is {}, expected 1 to {}", size_name, *size, kMaxRanks);
  }
  if (*rank < 0 || *rank >= *size) {
    return error(Code::kInvalidUsage, "{} is {}, expected 0 to {} ({} is {})", rank_name, *rank,
                 *size - 1, size_name, *size);
  }
  ZBCCL_ASSIGN_OR_RETURN(const auto local, number(local_name));
  if (local && *local < -1) {  // -1: unknown
    return error(Code::kInvalidUsage, "{} is {}, expected 0 or more", local_name, *local);
  }
  Placement placement;
  placement.launcher = launcher;
  placement.rank = *rank;
  placement.nranks = *size;
  placement.local_rank = local.value_or(-1);
  return std::optional<Placement>(placement);
}

// For launchers that give a job no name: the process that started the ranks of this machine, told
// from a later one of the same number by when it was started.
std::string parent_job() {
  const pid_t parent = ::getppid();
  std::ifstream file(format("/proc/{}/stat", parent));
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  // The second field is the command in parentheses and may hold blanks; the start is the 22nd.
  size_t at = text.rfind(')');
  for (int field = 2; field < 22 && at != std::string::npos; ++field) at = text.find(' ', at + 1);
  std::string start;
  if (at != std::string::npos) start = text.substr(at + 1, text.find(' ', at + 1) - at - 1);
  return format("parent-{}-{}", parent, start);
}

void name_job(Placement& placement, const char* prefix, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (const auto value = variable(name)) {
      placement.job = format("{}-{}", prefix, *value);
      placement.job_is_global = true;
      return;
    }
  }
  placement.job = parent_job();
}

// How many of the ranks the launcher says are on this machine; without an answer, all of them.
Status count_local(Placement& placement, const char* name) {
  ZBCCL_ASSIGN_OR_RETURN(const auto local, number(name));
  placement.one_machine = !local || *local == placement.nranks;
  return {};
}

Result<std::optional<Placement>> zbccl_placement() {
  ZBCCL_ASSIGN_OR_RETURN(
      auto found, place(Launcher::kZbccl, "ZBCCL_RANK", {"ZBCCL_WORLD_SIZE"}, "ZBCCL_LOCAL_RANK"));
  if (!found) {
    if (variable("ZBCCL_WORLD_SIZE")) {
      return missing(Launcher::kZbccl, "ZBCCL_WORLD_SIZE", "ZBCCL_RANK");
    }
    return found;
  }
  if (found->nranks > 1 && !variable("ZBCCL_UNIQUE_ID")) {
    return missing(Launcher::kZbccl, "ZBCCL_RANK", "ZBCCL_UNIQUE_ID");
  }
  return found;
}

Result<std::optional<Placement>> torchrun_placement() {
  ZBCCL_ASSIGN_OR_RETURN(auto found,
                         place(Launcher::kTorchrun, "RANK", {"WORLD_SIZE"}, "LOCAL_RANK"));
  if (!found) return found;
  ZBCCL_RETURN_IF_ERROR(count_local(*found, "LOCAL_WORLD_SIZE"));
  name_job(*found, "torchrun", {"TORCHELASTIC_RUN_ID"});
  return found;
}

Result<std::optional<Placement>> slurm_placement() {
  ZBCCL_ASSIGN_OR_RETURN(
      auto found, place(Launcher::kSlurm, "SLURM_PROCID",
                        {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"}, "SLURM_LOCALID"));
  if (!found) return found;
  ZBCCL_ASSIGN_OR_RETURN(const auto nodes, first_number({"SLURM_STEP_NUM_NODES", "SLURM_NNODES"}));
  found->one_machine = nodes.value_or(1) == 1;
  const auto step = variable("SLURM_STEP_ID");
  name_job(*found, "slurm", {"SLURM_JOB_ID", "SLURM_JOBID"});
  found->job = format("{}-{}", found->job, step.value_or("none"));
  if (!step && found->nranks > 1) {
    log::warn(log::Subsys::kInit,
              "SLURM_PROCID is set but SLURM_STEP_ID is not: in a batch script, outside srun, no "
              "other rank will come; start with srun, or unset SLURM_PROCID");
  }
  return found;
}

Result<std::optional<Placement>> open_mpi_placement() {
  ZBCCL_ASSIGN_OR_RETURN(auto found, place(Launcher::kOpenMpi, "OMPI_COMM_WORLD_RANK",
                                           {"OMPI_COMM_WORLD_SIZE"}, "OMPI_COMM_WORLD_LOCAL_RANK"));
  if (!found) return found;
  ZBCCL_RETURN_IF_ERROR(count_local(*found, "OMPI_COMM_WORLD_LOCAL_SIZE"));
  name_job(*found, "openmpi", {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"});
  return found;
}

Result<std::optional<Placement>> mpich_placement() {
  ZBCCL_ASSIGN_OR_RETURN(auto found,
                         place(Launcher::kMpich, "PMI_RANK", {"PMI_SIZE"}, "MPI_LOCALRANKID"));
  if (!found) return found;
  ZBCCL_RETURN_IF_ERROR(count_local(*found, "MPI_LOCALNRANKS"));
  name_job(*found, "mpich", {"PMI_JOBID"});
  return found;
}

// An mpirun inside of a Slurm job's batch script inherits that script's SLURM_PROCID.
void warn_if_nested(const Placement& winner) {
  if (winner.launcher != Launcher::kSlurm) return;
  for (const auto& inner : {open_mpi_placement(), mpich_placement()}) {
    if (!inner.ok() || !inner->has_value()) continue;
    const Placement& other = **inner;
    if (other.rank == winner.rank && other.nranks == winner.nranks) continue;
    log::warn(log::Subsys::kInit,
              "Slurm says rank {} of {}, {} says rank {} of {}: Slurm goes first; if mpirun "
              "started this process, unset SLURM_PROCID for it",
              winner.rank, winner.nranks, launcher_name(other.launcher), other.rank, other.nranks);
  }
}

}  // namespace

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

Result<uint16_t> port_variable(const char* name) {
  ZBCCL_ASSIGN_OR_RETURN(const auto port, number(name));
  if (!port) return error(Code::kInvalidUsage, "{} is not set", name);
  if (*port < 1 || *port > 65535) {
    return error(Code::kInvalidUsage, "{} is {}, expected 1 to 65535", name, *port);
  }
  return static_cast<uint16_t>(*port);
}

const char* launcher_name(Launcher launcher) {
  switch (launcher) {
    case Launcher::kZbccl: return "ZBCCL_*";
    case Launcher::kTorchrun: return "torchrun";
    case Launcher::kSlurm: return "Slurm";
    case Launcher::kOpenMpi: return "Open MPI";
    case Launcher::kMpich: return "MPICH";
  }
  return "unknown";
}

Result<std::optional<Placement>> find_placement() {
  for (auto* source : {&zbccl_placement, &torchrun_placement, &slurm_placement, &open_mpi_placement,
                       &mpich_placement}) {
    ZBCCL_ASSIGN_OR_RETURN(const auto found, source());
    if (!found) continue;
    warn_if_nested(*found);
    return found;
  }
  // Half of a set that no launcher completes.
  constexpr const char* kHalves[][2] = {{"WORLD_SIZE", "RANK"},
                                        {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
                                        {"PMI_SIZE", "PMI_RANK"}};
  for (const auto& [present, absent] : kHalves) {
    if (variable(present)) {
      return error(Code::kInvalidUsage, "{} is set but {} is not: set {} or unset {}", present,
                   absent, absent, present);
    }
  }
  return std::optional<Placement>();
}

}  // namespace zbccl::bootstrap
