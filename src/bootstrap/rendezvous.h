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

// Collective: reads ZBCCL_*, torchrun, Slurm, Open MPI, MPICH variables, in that order, and
// connects; the winner is logged at INFO. With none of them set: one rank on a local store. Half of
// a set of variables is kInvalidUsage and names the missing one. The nth call of every rank is one
// rendezvous, with keys of its own.
//
// Where the ranks meet, by the first of these that holds, and what that is worth:
// - one rank: nowhere.
// - ZBCCL_UNIQUE_ID: the TCP store there, which `zbccl run` or zbcclGetUniqueId serves. As private
//   as the variable: other users of the machine cannot read a process's environment, root can.
// - ZBCCL_SECRET_FILE, MASTER_ADDR and MASTER_PORT: rank 0 serves a TCP store there. As private as
//   the file, which must be closed to other users; what each job proves itself with is derived from
//   it, the job's name and the address, so that one file may serve many jobs.
// - torchrun: the store of its agent. That has no secret: whoever reaches the port can read and
//   write it, and everything that the ranks exchange through it.
// - Slurm, Open MPI, MPICH with all ranks on one machine: rank 0 serves a TCP store on the loopback
//   interface and leaves its address and a fresh secret in a file of mode 0600 in a directory of
//   mode 0700 that the user owns (XDG_RUNTIME_DIR/zbccl or TMPDIR/zbccl-UID). As private as the
//   user's files. The last rank to arrive removes it; a file that an earlier run left is passed
//   over, since nobody there answers with its secret.
// - on several machines without either variable: kInvalidUsage. There is no secret to be had, and a
//   store without one is not served.
Result<Rendezvous> from_environment(Deadline deadline);

// For the ranks of the two functions below to be told when one of them ends meanwhile, they attend
// the meeting `name` of the store (Store::attend) around them.

// Collective. Every rank brings `hello` (opaque) and gets everyone's, by rank. Reports to every
// rank, in time that does not depend on the deadline: different `nranks`, a rank twice, a rank
// outside [0, nranks), a different library version (kVersionMismatch). A rank that never comes is
// kTimeout, naming who is missing and how far they got. Uses keys under `name`, which is good for
// one join.
Result<std::vector<std::string>> join(Store& store, const std::string& name, int rank, int nranks,
                                      std::string_view hello, Deadline deadline);

// Collective among those who joined: every rank brings a blob and gets everyone's. `name` is good
// for one call; kTimeout names whose blob is missing.
Result<std::vector<std::string>> all_gather(Store& store, const std::string& name, int rank,
                                            int nranks, std::string_view value, Wait wait);

}  // namespace zbccl::bootstrap
