// broadcast. Every rank reads the root's input from where it lies; only the root waits for the
// others to finish.
#include "collectives/collective.h"
#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {

Status broadcast(Context& context, const Collective& call) {
  transport::Team& team = context.team;
  const size_t bytes = call.count * type_size(call.type);
  const bool is_root = team.rank() == call.root;
  transport::LocalBuffer input;
  ZBCCL_RETURN_IF_ERROR(input.open_input(team, call.send, is_root ? bytes : 0));
  context.staged = input.staged();
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), input.ref(), {}, call.timeout));
  if (is_root) {
    if (bytes > 0 && call.send != call.recv) {
      kernels::copy(call.recv, call.send, bytes, bytes >= context.tuning.stream_min);
    }
    return team.sync();
  }
  const Status status =
      pull(context, call.root, team.packet(call.root).input, {0, bytes}, call.recv);
  if (!status.ok()) return team.give_up(status);
  team.signal();
  return team.confirm();
}

}  // namespace zbccl::collectives
