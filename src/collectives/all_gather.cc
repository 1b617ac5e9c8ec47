// all_gather. Every rank reads every peer's contribution from where it lies to where it belongs:
// bytes read (nranks - 1) * S, written the same, two meetings. Each rank starts with the rank after
// it, so that no two read the same memory at once.
#include "collectives/collective.h"
#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

Status pull(Context& context, const Collective& call) {
  transport::Team& team = context.team;
  const size_t bytes = call.count * type_size(call.type);
  auto* out = static_cast<std::byte*>(call.recv);
  for (int step = 1; step < team.size(); ++step) {
    const int r = (team.rank() + step) % team.size();
    ZBCCL_ASSIGN_OR_RETURN(const auto source,
                           transport::RemoteBuffer::resolve(team, r, team.packet(r).input));
    ZBCCL_RETURN_IF_ERROR(source.read(0, out + bytes * static_cast<size_t>(r), bytes));
  }
  return {};
}

}  // namespace

Status all_gather(Context& context, const Collective& call) {
  using transport::LocalBuffer;
  transport::Team& team = context.team;
  const size_t bytes = call.count * type_size(call.type);
  ZBCCL_ASSIGN_OR_RETURN(const LocalBuffer input, LocalBuffer::input(team, call.send, bytes));
  context.staged = input.staged();
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), input.ref(), {}, call.timeout));
  if (bytes > 0) {
    std::byte* own = static_cast<std::byte*>(call.recv) + bytes * static_cast<size_t>(team.rank());
    if (own != call.send) kernels::copy(own, call.send, bytes, false);
    if (const Status status = pull(context, call); !status.ok()) return team.give_up(status);
  }
  return team.sync();  // nobody returns, and changes its input, before all have read it
}

}  // namespace zbccl::collectives
