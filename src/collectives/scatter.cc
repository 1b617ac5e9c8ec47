// scatter. Every rank reads its block of the root's input from where it lies; only the root waits
// for the others to finish.
#include "collectives/collective.h"
#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {

Status scatter(Context& context, const Collective& call) {
  transport::Team& team = context.team;
  const bool is_root = team.rank() == call.root;
  const Extent own = send_block(call, team.rank());
  transport::LocalBuffer input;
  ZBCCL_RETURN_IF_ERROR(
      input.open_input(team, call.send, send_bytes(call, team.rank(), team.size())));
  context.staged = input.staged();
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), input.ref(), {}, call.timeout));
  if (is_root) {
    const std::byte* from = at(call.send, own.offset);
    if (own.bytes > 0 && from != call.recv) {
      kernels::copy(call.recv, from, own.bytes, own.bytes >= context.tuning.stream_min);
    }
    return team.sync();
  }
  const Status status = pull(context, call.root, team.packet(call.root).input, own, call.recv);
  if (!status.ok()) return team.give_up(status);
  team.signal();
  return team.confirm();
}

}  // namespace zbccl::collectives
