#include "collectives/reduction.h"

#include <algorithm>

#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

using transport::RemoteBuffer;

constexpr size_t kPiece = 32 << 10;  // of an unmapped buffer at a time: all sources of a piece stay
                                     // in the second-level cache

kernels::ReduceArgs make_args(const Context& context, const Collective& call,
                              const void* const* src, void* const* dst, size_t num_dst,
                              size_t count) {
  const auto n = static_cast<size_t>(context.team.size());
  kernels::ReduceArgs args = {};
  args.src = src;
  args.num_src = n;
  args.dst = dst;
  args.num_dst = num_dst;
  args.count = count;
  args.type = call.type;
  args.op = call.op;
  args.avg_divisor = n;
  // In place the lines are in the cache already, where storing past it would first put them out.
  args.stream_stores = call.send != call.recv &&
                       count * type_size(call.type) * num_dst >= 2 * context.tuning.stream_min;
  return args;
}

// Pieces of memory that is not mapped here are read into scratch, and reduced from there.
Status reduce_pieces(Context& context, const Collective& call, plan::Range range,
                     PerRank<RemoteBuffer>& in, void* const* dst, size_t num_dst) {
  transport::Team& team = context.team;
  const int n = team.size();
  const size_t element = type_size(call.type);
  std::byte* scratch = team.scratch(kPiece * static_cast<size_t>(n));
  PerRank<const void*> src(n);
  std::vector<void*> to(num_dst);
  uint64_t landed = 0;
  for (size_t first = range.begin; first < range.end; first += kPiece / element) {
    const size_t count = std::min(kPiece / element, range.end - first);
    const size_t bytes = count * element;
    for (int r = 0; r < n; ++r) {
      if (in[r].direct() != nullptr) {
        src[r] = in[r].direct() + first * element;
        continue;
      }
      std::byte* piece = scratch + kPiece * static_cast<size_t>(r);
      ZBCCL_RETURN_IF_ERROR(in[r].read(first * element, piece, bytes));
      src[r] = piece;
      landed += bytes;
    }
    for (size_t d = 0; d < num_dst; ++d) to[d] = at(dst[d], (first - range.begin) * element);
    kernels::reduce(make_args(context, call, src.data(), to.data(), num_dst, count));
  }
  team.count_landing(landed);
  return {};
}

}  // namespace

Status reduce_range(Context& context, const Collective& call, plan::Range range, void* const* dst,
                    size_t num_dst) {
  if (range.size() == 0) return {};
  transport::Team& team = context.team;
  const int n = team.size();
  const size_t offset = range.begin * type_size(call.type);
  PerRank<RemoteBuffer> in(n);
  PerRank<const void*> src(n);
  bool direct = true;
  for (int r = 0; r < n; ++r) {
    ZBCCL_RETURN_IF_ERROR(in[r].resolve(team, r, team.packet(r).input));
    direct = direct && in[r].direct() != nullptr;
    src[r] = in[r].direct() + offset;
  }
  if (!direct) return reduce_pieces(context, call, range, in, dst, num_dst);
  kernels::reduce(make_args(context, call, src.data(), dst, num_dst, range.size()));
  return {};
}

Status reduce_one_shot(Context& context, const Collective& call, size_t bytes, plan::Range range) {
  transport::Team& team = context.team;
  const int n = team.size();
  if (n > 1 && bytes > 0) {
    kernels::copy(team.next_outbox(), call.send, bytes, false);
    team.count_landing(bytes);
  }
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), {}, {}, call.timeout));
  if (range.size() == 0) return {};
  if (n == 1) {
    if (call.send == call.recv) return {};
    kernels::copy(call.recv, call.send, bytes, bytes >= context.tuning.stream_min);
    return {};
  }
  PerRank<const void*> src(n);
  for (int r = 0; r < n; ++r) src[r] = team.outbox(r) + range.begin * type_size(call.type);
  kernels::reduce(make_args(context, call, src.data(), &call.recv, 1, range.size()));
  return {};
}

}  // namespace zbccl::collectives
