// One collective call and the functions that run it on a team. The arguments are checked by check()
// before anything is shown to the other ranks; run() is called on every rank of the team in the
// same order.
#pragma once

#include <cstddef>

#include "base/clock.h"
#include "base/status.h"
#include "base/types.h"
#include "plan/plan.h"
#include "transport/team.h"

namespace zbccl::collectives {

struct Collective {
  Operation operation = Operation::kNone;
  const void* send = nullptr;
  void* recv = nullptr;
  size_t count = 0;  // elements, as the public function counts them
  DataType type = DataType::kF32;
  RedOp op = RedOp::kSum;
  int root = 0;
  Milliseconds timeout{0};  // 0: the team's
};

// Bytes of this rank's input and output buffers.
size_t send_bytes(const Collective& call, int rank, int nranks);
size_t recv_bytes(const Collective& call, int rank, int nranks);

Status check(const Collective& call, int rank, int nranks);

struct Context {
  transport::Team& team;
  const plan::Tuning& tuning;
  plan::Algorithm algorithm = plan::Algorithm::kNone;
  bool staged = false;  // out: a buffer of this rank had to be staged
};

// Chooses the algorithm, runs it and leaves in *context what it did.
Status run(Context& context, const Collective& call);

// One file each. `context.algorithm` is set.
Status all_reduce(Context& context, const Collective& call);
Status all_gather(Context& context, const Collective& call);
Status reduce_scatter(Context& context, const Collective& call);
Status broadcast(Context& context, const Collective& call);
Status barrier(Context& context, const Collective& call);

// What every rank shows of `call`.
transport::Signature signature_of(const Context& context, const Collective& call);

}  // namespace zbccl::collectives
