// all_to_all, with one size or one for each pair. Every rank reads its block of every peer's input
// to where it belongs: two meetings. In place, each pair of ranks swaps its two blocks where they
// lie, each rank one half of them, so that nothing is set aside.
#include "collectives/collective.h"
#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

using transport::LocalBuffer;
using transport::RemoteBuffer;
using transport::Team;

Extent peer_block(const Team& team, const Collective& call, int peer) {
  if (call.operation == Operation::kAllToAll) return send_block(call, team.rank());
  const transport::BlockRow& row = team.row(peer, team.rank());
  return {row.send_offset, row.send_count * type_size(call.type)};
}

Status pull_all(Context& context, const Collective& call) {
  Team& team = context.team;
  const Extent from = send_block(call, team.rank());
  const Extent to = recv_block(call, team.rank());
  if (from.bytes > 0) {
    kernels::copy(at(call.recv, to.offset), at(call.send, from.offset), from.bytes,
                  from.bytes >= context.tuning.stream_min);
  }
  for (int step = 1; step < team.size(); ++step) {
    const int r = (team.rank() + step) % team.size();
    ZBCCL_RETURN_IF_ERROR(pull(context, r, team.packet(r).input, peer_block(team, call, r),
                               at(call.recv, recv_block(call, r).offset)));
  }
  return {};
}

Status apart(Context& context, const Collective& call) {
  Team& team = context.team;
  const int rank = team.rank();
  LocalBuffer input;
  ZBCCL_RETURN_IF_ERROR(input.open_input(team, call.send, send_bytes(call, rank, team.size())));
  context.staged = input.staged();
  const bool tallied = call.operation == Operation::kAllToAllV;
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), input.ref(), {}, call.timeout,
                                   tallied ? tally_of(call, rank) : 0));
  if (const Status status = pull_all(context, call); !status.ok()) return team.give_up(status);
  return team.sync();  // nobody returns, and changes its input, before all have read it
}

Status swap_all(Context& context, const Collective& call, std::byte* own) {
  Team& team = context.team;
  const int rank = team.rank();
  for (int step = 1; step < team.size(); ++step) {
    const int r = (rank + step) % team.size();
    RemoteBuffer peer;
    ZBCCL_RETURN_IF_ERROR(peer.resolve(team, r, team.packet(r).input));
    const Extent mine = send_block(call, r);
    const Extent theirs = send_block(call, rank);
    const size_t half = mine.bytes / 2;
    const size_t begin = rank < r ? 0 : half;
    const size_t bytes = rank < r ? half : mine.bytes - half;
    kernels::swap(own + mine.offset + begin, peer.direct() + theirs.offset + begin, bytes);
  }
  return {};
}

Status in_place(Context& context, const Collective& call) {
  Team& team = context.team;
  LocalBuffer buffer;
  ZBCCL_RETURN_IF_ERROR(
      buffer.open_in_place(team, call.recv, recv_bytes(call, team.rank(), team.size())));
  context.staged = buffer.staged();
  ZBCCL_RETURN_IF_ERROR(
      team.enter(signature_of(context, call), buffer.ref(), buffer.ref(), call.timeout));
  Status status = swap_all(context, call, buffer.shown());
  if (!status.ok()) return team.give_up(status);
  status = team.sync();
  if (status.ok()) buffer.finish();
  return status;
}

}  // namespace

Status all_to_all(Context& context, const Collective& call) {
  return swaps_in_place(call) ? in_place(context, call) : apart(context, call);
}

}  // namespace zbccl::collectives
