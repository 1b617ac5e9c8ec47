// all_gather, with one size or one for each rank. Every rank reads every peer's contribution from
// where it lies to where it belongs: two meetings.
#include "collectives/collective.h"
#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {

Status all_gather(Context& context, const Collective& call) {
  transport::Team& team = context.team;
  const Extent own = recv_block(call, team.rank());
  transport::LocalBuffer input;
  ZBCCL_RETURN_IF_ERROR(input.open_input(team, call.send, own.bytes));
  context.staged = input.staged();
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), input.ref(), {}, call.timeout));
  std::byte* const to = at(call.recv, own.offset);
  if (own.bytes > 0 && to != call.send) {
    kernels::copy(to, call.send, own.bytes, own.bytes >= context.tuning.stream_min);
  }
  if (const Status status = pull_blocks(context, call); !status.ok()) return team.give_up(status);
  return team.sync();  // nobody returns, and changes its input, before all have read it
}

}  // namespace zbccl::collectives
