// all_reduce. One-shot: bytes read nranks * S, written S, one meeting. Two-shot: read S, written S
// (a chunk of every input to the same chunk of every output), two meetings; nothing lies in library
// memory in between.
#include "collectives/collective.h"
#include "collectives/reduction.h"
#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

Status one_shot(Context& context, const Collective& call) {
  transport::Team& team = context.team;
  const size_t bytes = call.count * type_size(call.type);
  if (team.size() > 1) fill_outbox(context, call.send, bytes);
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), {}, {}, call.timeout));
  if (team.size() > 1) {
    reduce_outboxes(context, call, {0, call.count});
  } else if (bytes > 0 && call.send != call.recv) {
    kernels::copy(call.recv, call.send, bytes, bytes >= context.tuning.stream_min);
  }
  return {};
}

Status exchange_chunks(Context& context, const Collective& call, const transport::BufferRef& input,
                       const transport::BufferRef& output) {
  transport::Team& team = context.team;
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), input, output, call.timeout));
  const plan::Range mine =
      plan::chunk_of(call.count, type_size(call.type), team.rank(), team.size());
  if (const Status status = reduce_range(context, call, mine, Target::kAllOutputs); !status.ok()) {
    return team.give_up(status);
  }
  return team.sync();
}

Status two_shot(Context& context, const Collective& call) {
  using transport::LocalBuffer;
  transport::Team& team = context.team;
  const size_t bytes = call.count * type_size(call.type);
  ZBCCL_ASSIGN_OR_RETURN(const LocalBuffer input, LocalBuffer::input(team, call.send, bytes));
  ZBCCL_ASSIGN_OR_RETURN(LocalBuffer output, LocalBuffer::output(team, call.recv, bytes));
  context.staged = input.staged() || output.staged();
  const Status status = exchange_chunks(context, call, input.ref(), output.ref());
  if (status.ok()) output.finish();
  // Peers write into the output: after a failure one of them may do so late.
  if (!status.ok() && team.failed()) team.quarantine(call.recv);
  return status;
}

}  // namespace

Status all_reduce(Context& context, const Collective& call) {
  return context.algorithm == plan::Algorithm::kOneShot ? one_shot(context, call)
                                                        : two_shot(context, call);
}

}  // namespace zbccl::collectives
