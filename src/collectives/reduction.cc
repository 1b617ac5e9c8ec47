#include "collectives/reduction.h"

#include <algorithm>

#include "kernels/quantize.h"
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

// What the operation makes of `count` elements of every rank.
void reduce_sources(const Context& context, const Collective& call, const void* const* src,
                    void* const* dst, size_t num_dst, size_t count) {
  if (call.operation != Operation::kAllReduceQuantized) {
    kernels::reduce(make_args(context, call, src, dst, num_dst, count));
    return;
  }
  const auto n = static_cast<size_t>(context.team.size());
  kernels::sum_quantized({src, n, dst, num_dst, count, call.type, call.code});
}

// Pieces of memory that is not mapped here are read into scratch, and used from there.
Status with_pieces(Context& context, const Collective& call, plan::Range range, size_t grain,
                   PerRank<RemoteBuffer>& in, const UseSources& use) {
  transport::Team& team = context.team;
  const int n = team.size();
  const size_t element = type_size(call.type);
  const size_t most = std::max(kPiece / element / grain, size_t{1}) * grain;
  std::byte* scratch = team.scratch(most * element * static_cast<size_t>(n));
  PerRank<const void*> src(n);
  uint64_t landed = 0;
  for (size_t first = range.begin; first < range.end; first += most) {
    const size_t count = std::min(most, range.end - first);
    const size_t bytes = count * element;
    for (int r = 0; r < n; ++r) {
      if (in[r].direct() != nullptr) {
        src[r] = in[r].direct() + first * element;
        continue;
      }
      std::byte* piece = scratch + most * element * static_cast<size_t>(r);
      ZBCCL_RETURN_IF_ERROR(in[r].read(first * element, piece, bytes));
      src[r] = piece;
      landed += bytes;
    }
    use(src.data(), first, count);
  }
  team.count_landing(landed);
  return {};
}

// Where the range begins in every rank's input. True if all of them are mapped here.
Result<bool> resolve(Context& context, const Collective& call, plan::Range range,
                     PerRank<RemoteBuffer>& in, PerRank<const void*>& src) {
  transport::Team& team = context.team;
  const size_t offset = range.begin * type_size(call.type);
  bool direct = true;
  for (int r = 0; r < team.size(); ++r) {
    ZBCCL_RETURN_IF_ERROR(in[r].resolve(team, r, team.packet(r).input));
    direct = direct && in[r].direct() != nullptr;
    src[r] = in[r].direct() + offset;
  }
  return direct;
}

// Groups of elements that share a scale are not divided.
size_t grain_of(const Collective& call) {
  return call.operation == Operation::kAllReduceQuantized ? kScaleGroup : 1;
}

}  // namespace

Status with_sources(Context& context, const Collective& call, plan::Range range, size_t grain,
                    const UseSources& use) {
  if (range.size() == 0) return {};
  PerRank<RemoteBuffer> in(context.team.size());
  PerRank<const void*> src(context.team.size());
  ZBCCL_ASSIGN_OR_RETURN(const bool direct, resolve(context, call, range, in, src));
  if (!direct) return with_pieces(context, call, range, grain, in, use);
  use(src.data(), range.begin, range.size());
  return {};
}

Status reduce_range(Context& context, const Collective& call, plan::Range range, void* const* dst,
                    size_t num_dst) {
  if (range.size() == 0) return {};
  PerRank<RemoteBuffer> in(context.team.size());
  PerRank<const void*> src(context.team.size());
  ZBCCL_ASSIGN_OR_RETURN(const bool direct, resolve(context, call, range, in, src));
  if (direct) {
    reduce_sources(context, call, src.data(), dst, num_dst, range.size());
    return {};
  }
  std::vector<void*> to(num_dst);
  return with_pieces(context, call, range, grain_of(call), in,
                     [&](const void* const* pieces, size_t first, size_t count) {
                       const size_t offset = (first - range.begin) * type_size(call.type);
                       for (size_t d = 0; d < num_dst; ++d) to[d] = at(dst[d], offset);
                       reduce_sources(context, call, pieces, to.data(), num_dst, count);
                     });
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
  reduce_sources(context, call, src.data(), &call.recv, 1, range.size());
  return {};
}

}  // namespace zbccl::collectives
