// How ranks find each other: who am I, how many are we, which store do we meet in; then the join
// that checks it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "bootstrap/store.h"
#include "bootstrap/unique_id.h"

namespace zbccl::bootstrap {

struct Rendezvous {
  int rank = 0;
  int nranks = 1;
  int local_rank = -1;  // -1: unknown
  std::string source;   // "ZBCCL_*", "torchrun", "Slurm", "Open MPI", "MPICH", "single rank"
  std::shared_ptr<Store> store;
};

// Reads ZBCCL_*, torchrun, Slurm, Open MPI, MPICH variables, in that order, and connects; the
// winner is logged at INFO. With none of them set: one rank on a local store. Half of a set of
// variables is kInvalidUsage and names the missing one.
Result<Rendezvous> from_environment(Deadline deadline);

// Collective. Every rank brings `hello` (opaque) and gets everyone's, by rank. Reports to every
// rank, in time that does not depend on the deadline: different `nranks`, a rank twice, a rank
// outside [0, nranks), a different library version (kVersionMismatch). A rank that never comes is
// kTimeout, naming who is missing. Uses keys under `name`, which is good for one join.
Result<std::vector<std::string>> join(Store& store, const std::string& name, int rank, int nranks,
                                      std::string_view hello, Deadline deadline);

// Collective among those who joined: every rank brings a blob and gets everyone's. `name` is good
// for one call.
Result<std::vector<std::string>> all_gather(Store& store, const std::string& name, int rank,
                                            int nranks, std::string_view value, Deadline deadline);

}  // namespace zbccl::bootstrap
