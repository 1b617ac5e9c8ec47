// gather. Every rank writes its block into the root's output, so that all cores work, and only the
// root waits for the others; where that output is ordinary memory, which no peer stores to, the
// root fetches the blocks and the others wait.
#include "collectives/collective.h"
#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

using transport::BufferRef;
using transport::LocalBuffer;
using transport::RemoteBuffer;
using transport::Team;

Status push(Context& context, const Collective& call, const Extent& own) {
  Team& team = context.team;
  RemoteBuffer output;
  ZBCCL_RETURN_IF_ERROR(output.resolve(team, call.root, team.packet(call.root).output));
  std::byte* const to = output.direct() + own.offset;
  if (own.bytes > 0 && to != call.send) {
    kernels::copy(to, call.send, own.bytes, own.bytes >= context.tuning.stream_min);
  }
  return {};
}

Status fetch(Context& context, const Collective& call, const Extent& own) {
  if (own.bytes > 0 && at(call.recv, own.offset) != call.send) {
    kernels::copy(at(call.recv, own.offset), call.send, own.bytes, false);
  }
  return pull_blocks(context, call);
}

}  // namespace

Status gather(Context& context, const Collective& call) {
  Team& team = context.team;
  const bool is_root = team.rank() == call.root;
  const Extent own = recv_block(call, team.rank());
  LocalBuffer input;
  LocalBuffer output;
  // Shown although the peers' memory may not be needed: the root's output is not known yet.
  ZBCCL_RETURN_IF_ERROR(input.open_input(team, call.send, is_root ? 0 : own.bytes));
  ZBCCL_RETURN_IF_ERROR(
      output.open_output(team, call.recv, recv_bytes(call, team.rank(), team.size())));
  context.staged = input.staged() || output.staged();
  ZBCCL_RETURN_IF_ERROR(
      team.enter(signature_of(context, call), input.ref(), output.ref(), call.timeout));
  const bool fetched =
      own.bytes > 0 && team.packet(call.root).output.segment == BufferRef::kAddress;
  Status status;
  if (!fetched) {
    status = push(context, call, own);
  } else if (is_root) {
    status = fetch(context, call, own);
  }
  if (!status.ok()) return team.give_up(status);
  if (!is_root && !fetched) {
    team.signal();
    return {};
  }
  status = team.sync();
  if (is_root && status.ok()) output.finish();
  return status;
}

}  // namespace zbccl::collectives
