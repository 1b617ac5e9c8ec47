// reduce_scatter. Every rank reduces its own block: out of the outboxes (small), or straight out of
// all inputs.
#include "collectives/collective.h"
#include "collectives/reduction.h"
#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

plan::Range own_block(const Context& context, const Collective& call) {
  const size_t begin = call.count * static_cast<size_t>(context.team.rank());
  return {begin, begin + call.count};
}

Status one_shot(Context& context, const Collective& call) {
  transport::Team& team = context.team;
  const size_t bytes = call.count * type_size(call.type);
  if (team.size() > 1) {
    fill_outbox(context, call.send, bytes * static_cast<size_t>(team.size()));
  }
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), {}, {}, call.timeout));
  if (team.size() > 1) {
    reduce_outboxes(context, call, own_block(context, call));
  } else if (bytes > 0 && call.send != call.recv) {
    kernels::copy(call.recv, call.send, bytes, bytes >= context.tuning.stream_min);
  }
  return {};
}

Status direct(Context& context, const Collective& call) {
  using transport::LocalBuffer;
  transport::Team& team = context.team;
  const size_t bytes = call.count * type_size(call.type) * static_cast<size_t>(team.size());
  ZBCCL_ASSIGN_OR_RETURN(const LocalBuffer input, LocalBuffer::input(team, call.send, bytes));
  context.staged = input.staged();
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), input.ref(), {}, call.timeout));
  const Status status = reduce_range(context, call, own_block(context, call), Target::kOwnOutput);
  if (!status.ok()) return team.give_up(status);
  return team.sync();  // nobody returns, and changes its input, before all have read it
}

}  // namespace

Status reduce_scatter(Context& context, const Collective& call) {
  return context.algorithm == plan::Algorithm::kOneShot ? one_shot(context, call)
                                                        : direct(context, call);
}

}  // namespace zbccl::collectives
