#include "collectives/reduction.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

using transport::RemoteBuffer;

constexpr size_t kPiece = 32 << 10;  // of an unmapped buffer at a time: all sources of a piece stay
                                     // in the second-level cache
constexpr size_t kInlineRanks = 16;

// An array of one element per rank that needs no allocation for the usual numbers of ranks.
template <typename T>
class PerRank {
 public:
  explicit PerRank(int nranks) {
    if (static_cast<size_t>(nranks) > kInlineRanks) heap_.resize(static_cast<size_t>(nranks));
  }
  T* data() { return heap_.empty() ? inline_.data() : heap_.data(); }
  T& operator[](int i) { return data()[i]; }

 private:
  std::array<T, kInlineRanks> inline_{};
  std::vector<T> heap_;
};

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
  args.stream_stores = count * type_size(call.type) * num_dst >= context.tuning.stream_min;
  return args;
}

// Pieces of memory that is not mapped here are read into scratch, reduced there, and written from
// there.
Status reduce_pieces(Context& context, const Collective& call, plan::Range range,
                     PerRank<RemoteBuffer>& in, PerRank<RemoteBuffer>& out, Target target) {
  transport::Team& team = context.team;
  const int n = team.size();
  const size_t element = type_size(call.type);
  std::byte* scratch = team.scratch(kPiece * (static_cast<size_t>(n) + 1));
  std::byte* result = scratch + kPiece * static_cast<size_t>(n);
  PerRank<const void*> src(n);
  uint64_t landed = 0;
  for (size_t at = range.begin; at < range.end; at += kPiece / element) {
    const size_t count = std::min(kPiece / element, range.end - at);
    const size_t bytes = count * element;
    for (int r = 0; r < n; ++r) {
      if (in[r].direct() != nullptr) {
        src[r] = in[r].direct() + at * element;
        continue;
      }
      std::byte* piece = scratch + kPiece * static_cast<size_t>(r);
      ZBCCL_RETURN_IF_ERROR(in[r].read(at * element, piece, bytes));
      src[r] = piece;
      landed += bytes;
    }
    if (target == Target::kOwnOutput) {
      void* own = static_cast<std::byte*>(call.recv) + (at - range.begin) * element;
      kernels::reduce(make_args(context, call, src.data(), &own, 1, count));
      continue;
    }
    void* local = result;
    kernels::reduce(make_args(context, call, src.data(), &local, 1, count));
    for (int r = 0; r < n; ++r) ZBCCL_RETURN_IF_ERROR(out[r].write(at * element, result, bytes));
  }
  team.traffic().add_landing(landed);
  observe::process_traffic().add_landing(landed);
  return {};
}

}  // namespace

Status reduce_range(Context& context, const Collective& call, plan::Range range, Target target) {
  if (range.size() == 0) return {};
  transport::Team& team = context.team;
  const int n = team.size();
  const size_t element = type_size(call.type);
  PerRank<RemoteBuffer> in(n);
  PerRank<RemoteBuffer> out(n);
  bool direct = true;
  for (int r = 0; r < n; ++r) {
    const transport::Packet& packet = team.packet(r);
    ZBCCL_ASSIGN_OR_RETURN(in[r], RemoteBuffer::resolve(team, r, packet.input));
    direct = direct && in[r].direct() != nullptr;
    if (target == Target::kAllOutputs) {
      ZBCCL_ASSIGN_OR_RETURN(out[r], RemoteBuffer::resolve(team, r, packet.output));
      direct = direct && out[r].direct() != nullptr;
    }
  }
  if (!direct) return reduce_pieces(context, call, range, in, out, target);
  PerRank<const void*> src(n);
  PerRank<void*> dst(n);
  for (int r = 0; r < n; ++r) {
    src[r] = in[r].direct() + range.begin * element;
    dst[r] = target == Target::kAllOutputs ? out[r].direct() + range.begin * element : call.recv;
  }
  const size_t num_dst = target == Target::kAllOutputs ? static_cast<size_t>(n) : 1;
  kernels::reduce(make_args(context, call, src.data(), dst.data(), num_dst, range.size()));
  return {};
}

void reduce_outboxes(Context& context, const Collective& call, plan::Range range) {
  if (range.size() == 0) return;
  transport::Team& team = context.team;
  const int n = team.size();
  PerRank<const void*> src(n);
  for (int r = 0; r < n; ++r) src[r] = team.outbox(r) + range.begin * type_size(call.type);
  kernels::reduce(make_args(context, call, src.data(), &call.recv, 1, range.size()));
}

void fill_outbox(Context& context, const void* data, size_t bytes) {
  if (bytes == 0) return;
  kernels::copy(context.team.next_outbox(), data, bytes, false);
  context.team.traffic().add_landing(bytes);
  observe::process_traffic().add_landing(bytes);
}

}  // namespace zbccl::collectives
