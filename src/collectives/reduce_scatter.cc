// reduce_scatter, with one size or one for each rank. Every rank reduces its own block: out of the
// outboxes (small), or straight out of all inputs.
#include "collectives/collective.h"
#include "collectives/reduction.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

plan::Range own_block(const Context& context, const Collective& call) {
  const Extent own = send_block(call, context.team.rank());
  const size_t element = type_size(call.type);
  return {own.offset / element, (own.offset + own.bytes) / element};
}

size_t input_bytes(const Context& context, const Collective& call) {
  return send_bytes(call, context.team.rank(), context.team.size());
}

Status direct(Context& context, const Collective& call) {
  transport::Team& team = context.team;
  transport::LocalBuffer input;
  ZBCCL_RETURN_IF_ERROR(input.open_input(team, call.send, input_bytes(context, call)));
  context.staged = input.staged();
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), input.ref(), {}, call.timeout));
  const Status status = reduce_range(context, call, own_block(context, call), &call.recv, 1);
  if (!status.ok()) return team.give_up(status);
  return team.sync();  // nobody returns, and changes its input, before all have read it
}

}  // namespace

Status reduce_scatter(Context& context, const Collective& call) {
  if (context.algorithm != plan::Algorithm::kOneShot) return direct(context, call);
  return reduce_one_shot(context, call, input_bytes(context, call), own_block(context, call));
}

}  // namespace zbccl::collectives
