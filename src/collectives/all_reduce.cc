// all_reduce, of elements or of their codes. One-shot: bytes read nranks * S, written S, one
// meeting. Two-shot: read S, written S (a chunk of every input to the same chunk of every output),
// two meetings; nothing lies in library memory in between. Where an output is ordinary memory,
// which no peer stores to, each rank keeps its chunk and the others fetch it: one meeting and a
// copy more.
#include "collectives/collective.h"
#include "collectives/reduction.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

using transport::BufferRef;
using transport::LocalBuffer;
using transport::RemoteBuffer;
using transport::Team;

bool all_outputs_mapped(const Team& team) {
  bool mapped = true;
  for (int r = 0; r < team.size(); ++r) {
    mapped = mapped && team.packet(r).output.segment != BufferRef::kAddress;
  }
  return mapped;
}

plan::Range chunk(const Context& context, const Collective& call, int rank) {
  // 128 elements that share a scale make one line of bytes.
  static_assert(kScaleGroup == 128);
  const size_t element =
      call.operation == Operation::kAllReduceQuantized ? 1 : type_size(call.type);
  return plan::chunk_of(call.count, element, rank, context.team.size());
}

Status push_chunk(Context& context, const Collective& call) {
  Team& team = context.team;
  const int n = team.size();
  const plan::Range mine = chunk(context, call, team.rank());
  const size_t offset = mine.begin * type_size(call.type);
  PerRank<void*> dst(n);
  for (int r = 0; r < n; ++r) {
    RemoteBuffer out;
    ZBCCL_RETURN_IF_ERROR(out.resolve(team, r, team.packet(r).output));
    dst[r] = out.direct() + offset;
  }
  return reduce_range(context, call, mine, dst.data(), static_cast<size_t>(n));
}

Status keep_and_fetch(Context& context, const Collective& call, std::byte* output) {
  Team& team = context.team;
  const size_t element = type_size(call.type);
  const plan::Range mine = chunk(context, call, team.rank());
  void* own = output + mine.begin * element;
  ZBCCL_RETURN_IF_ERROR(reduce_range(context, call, mine, &own, 1));
  ZBCCL_RETURN_IF_ERROR(team.sync());
  for (int step = 1; step < team.size(); ++step) {
    const int r = (team.rank() + step) % team.size();
    const plan::Range theirs = chunk(context, call, r);
    const Extent extent = {theirs.begin * element, theirs.size() * element};
    ZBCCL_RETURN_IF_ERROR(pull(context, r, team.packet(r).output, extent, output + extent.offset));
  }
  return {};
}

// `output`: this rank's, where its peers see it.
Status exchange_chunks(Context& context, const Collective& call, std::byte* output) {
  Team& team = context.team;
  const Status status =
      all_outputs_mapped(team) ? push_chunk(context, call) : keep_and_fetch(context, call, output);
  if (!status.ok()) return team.give_up(status);
  return team.sync();
}

Status two_shot(Context& context, const Collective& call) {
  Team& team = context.team;
  const size_t bytes = call.count * type_size(call.type);
  LocalBuffer input;
  LocalBuffer output;
  ZBCCL_RETURN_IF_ERROR(input.open_input(team, call.send, bytes));
  ZBCCL_RETURN_IF_ERROR(output.open_output(team, call.recv, bytes));
  context.staged = input.staged() || output.staged();
  ZBCCL_RETURN_IF_ERROR(
      team.enter(signature_of(context, call), input.ref(), output.ref(), call.timeout));
  const Status status = exchange_chunks(context, call, output.shown());
  if (status.ok()) output.finish();
  return status;
}

}  // namespace

Status all_reduce(Context& context, const Collective& call) {
  if (context.algorithm != plan::Algorithm::kOneShot) return two_shot(context, call);
  return reduce_one_shot(context, call, call.count * type_size(call.type), {0, call.count});
}

}  // namespace zbccl::collectives
