// reduce. One-shot: every rank leaves its input in its outbox and the root sums them. Two-shot:
// every rank sums one chunk of all inputs straight into the root's output, so that all cores work;
// where that is ordinary memory, which no peer stores to, the root sums everything.

#include "collectives/collective.h"
#include "collectives/reduction.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

using transport::BufferRef;
using transport::LocalBuffer;
using transport::RemoteBuffer;
using transport::Team;

Status reduce_part(Context& context, const Collective& call, void* own_output) {
  Team& team = context.team;
  const BufferRef& shown = team.packet(call.root).output;
  const bool is_root = team.rank() == call.root;
  if (shown.segment == BufferRef::kAddress) {
    if (!is_root) return {};
    return reduce_range(context, call, {0, call.count}, &own_output, 1);
  }
  const size_t element = type_size(call.type);
  const plan::Range mine = plan::chunk_of(call.count, element, team.rank(), team.size());
  RemoteBuffer output;
  ZBCCL_RETURN_IF_ERROR(output.resolve(team, call.root, shown));
  void* to = output.direct() + mine.begin * element;
  return reduce_range(context, call, mine, &to, 1);
}

Status two_shot(Context& context, const Collective& call) {
  Team& team = context.team;
  const size_t bytes = call.count * type_size(call.type);
  const bool is_root = team.rank() == call.root;
  LocalBuffer input;
  LocalBuffer output;
  ZBCCL_RETURN_IF_ERROR(input.open_input(team, call.send, bytes));
  if (is_root) ZBCCL_RETURN_IF_ERROR(output.open_output(team, call.recv, bytes));
  context.staged = input.staged() || output.staged();
  ZBCCL_RETURN_IF_ERROR(
      team.enter(signature_of(context, call), input.ref(), output.ref(), call.timeout));
  Status status = reduce_part(context, call, output.shown());
  if (!status.ok()) return team.give_up(status);
  status = team.sync();
  if (status.ok() && is_root) output.finish();
  return status;
}

}  // namespace

Status reduce(Context& context, const Collective& call) {
  if (context.algorithm != plan::Algorithm::kOneShot) return two_shot(context, call);
  const bool is_root = context.team.rank() == call.root;
  return reduce_one_shot(context, call, call.count * type_size(call.type),
                         {0, is_root ? call.count : 0});
}

}  // namespace zbccl::collectives
