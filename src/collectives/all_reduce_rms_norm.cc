// all_reduce, residual addition and RMSNorm at once. One-shot: every rank reduces and normalises
// all rows out of the outboxes; one meeting. Two-shot: every rank does a share of the rows and
// writes all outputs of every rank; two meetings, nothing in between. Where an output is ordinary
// memory, which no peer stores to, each rank keeps its rows and the others fetch them: one meeting
// and a copy more.
#include <algorithm>
#include <bit>
#include <vector>

#include "collectives/collective.h"
#include "collectives/reduction.h"
#include "kernels/reduce.h"
#include "transport/buffer.h"

namespace zbccl::collectives {
namespace {

using kernels::NormOutputs;
using kernels::NormScratch;
using transport::Annex;
using transport::BufferRef;
using transport::LocalBuffer;
using transport::RemoteBuffer;
using transport::Team;

constexpr size_t kPiece = 32 << 10;  // of reduced rows at a time: they stay in the nearest cache
constexpr int kOutputs = Annex::kBuffers;

struct Rows {
  size_t begin = 0;
  size_t end = 0;
};

Rows rows_of(const NormCall& call, int rank, int nranks) {
  const auto n = static_cast<size_t>(nranks);
  const size_t share = (call.tokens + n - 1) / n;
  const size_t begin = std::min(call.tokens, share * static_cast<size_t>(rank));
  return {begin, std::min(call.tokens, begin + share)};
}

// One of the outputs: a matrix whose rows or whose columns are runs of memory.
struct Matrix {
  void* data = nullptr;  // null: not wanted
  size_t element = 0;    // bytes
  size_t columns = 0;
  size_t row_stride = 0;  // elements
  size_t column_stride = 0;

  size_t bytes(size_t rows) const {
    if (data == nullptr || rows == 0) return 0;
    return element * ((rows - 1) * row_stride + (columns - 1) * column_stride + 1);
  }
  // Calls use(offset, bytes) for each run of memory that these rows have.
  template <typename Use>
  Status for_each_run(Rows rows, const Use& use) const {
    if (data == nullptr || rows.begin == rows.end) return {};
    const size_t count = rows.end - rows.begin;
    if (column_stride == 1 && row_stride == columns) {
      return use(rows.begin * row_stride * element, count * row_stride * element);
    }
    const bool by_rows = column_stride == 1;
    const size_t runs = by_rows ? count : columns;
    const size_t length = by_rows ? columns : count;
    for (size_t i = 0; i < runs; ++i) {
      const size_t first =
          by_rows ? (rows.begin + i) * row_stride : rows.begin * row_stride + i * column_stride;
      ZBCCL_RETURN_IF_ERROR(use(first * element, length * element));
    }
    return {};
  }
};

std::array<Matrix, kOutputs> matrices_of(const NormCall& call) {
  const kernels::Norm& norm = call.norm;
  const NormOutputs& to = call.outputs;
  const size_t wide = type_size(norm.type);
  const size_t groups = norm.hidden / kScaleGroup;
  const auto rows = [&](void* data, size_t element) -> Matrix {
    return {data, element, norm.hidden, norm.hidden, 1};
  };
  const auto scales = [&](void* data, size_t element) -> Matrix {
    return {data, element, groups, to.row_stride, to.group_stride};
  };
  return {rows(to.residual_out, wide), rows(to.out, wide), rows(to.codes, 1),
          scales(to.scales, sizeof(float)), scales(to.exponents, 1)};
}

NormOutputs outputs_at(const NormCall& call, const std::array<void*, kOutputs>& data) {
  return {data[0],
          data[1],
          data[2],
          static_cast<float*>(data[3]),
          static_cast<uint8_t*>(data[4]),
          call.outputs.row_stride,
          call.outputs.group_stride};
}

// Rows `first` to first + count - 1, whose parts begin at src[r].
void reduce_rows(const Context& context, const NormCall& call, const void* const* src, size_t first,
                 size_t count, const std::vector<NormOutputs>& to, NormScratch& scratch) {
  const auto n = static_cast<size_t>(context.team.size());
  const size_t row_bytes = call.norm.hidden * type_size(call.norm.type);
  const size_t most = std::max(kPiece / row_bytes, size_t{1});
  scratch.row.resize(std::min(most, count) * row_bytes);
  std::vector<const void*> from(n);
  for (size_t done = 0; done < count; done += most) {
    const size_t rows = std::min(most, count - done);
    for (size_t r = 0; r < n; ++r) from[r] = at(src[r], done * row_bytes);
    void* sums = scratch.row.data();
    kernels::reduce(
        {from.data(), n, &sums, 1, rows * call.norm.hidden, call.norm.type, RedOp::kSum, n, false});
    kernels::norm_rows(call.norm, sums, call.residual, call.weight, first + done, rows, to.data(),
                       to.size(), scratch);
  }
}

Status one_shot(Context& context, const Collective& call) {
  Team& team = context.team;
  const NormCall& norm = *call.norm;
  const int n = team.size();
  const size_t bytes = call.count * type_size(call.type);
  if (n > 1 && bytes > 0) {
    kernels::copy(team.next_outbox(), call.send, bytes, false);
    team.count_landing(bytes);
  }
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), {}, {}, call.timeout));
  NormScratch scratch;
  if (n == 1) {
    kernels::norm_rows(norm.norm, call.send, norm.residual, norm.weight, 0, norm.tokens,
                       &norm.outputs, 1, scratch);
    return {};
  }
  PerRank<const void*> src(n);
  for (int r = 0; r < n; ++r) src[r] = team.outbox(r);
  reduce_rows(context, norm, src.data(), 0, norm.tokens, {norm.outputs}, scratch);
  return {};
}

// This rank's outputs for the time of the call, as peers see them.
class Outputs {
 public:
  explicit Outputs(const NormCall& call) : call_(call), matrices_(matrices_of(call)) {}

  Status open(Team& team, Annex* annex) {
    for (size_t i = 0; i < matrices_.size(); ++i) {
      const Matrix& matrix = matrices_[i];
      const size_t bytes = matrix.bytes(call_.tokens);
      ZBCCL_RETURN_IF_ERROR(buffers_[i].open_output(team, matrix.data, bytes));
      annex->buffers[i] = buffers_[i].ref();
    }
    return {};
  }
  const std::array<Matrix, kOutputs>& matrices() const { return matrices_; }
  bool staged() const {
    return std::any_of(buffers_.begin(), buffers_.end(), [](const auto& b) { return b.staged(); });
  }
  std::byte* shown(size_t i) const { return buffers_[i].shown(); }
  NormOutputs own() const {
    std::array<void*, kOutputs> data{};
    for (size_t i = 0; i < data.size(); ++i) {
      if (matrices_[i].data != nullptr) data[i] = buffers_[i].shown();
    }
    return outputs_at(call_, data);
  }
  // Copies what was staged to where it belongs, and nothing of what lies between strides.
  void finish() {
    for (size_t i = 0; i < matrices_.size(); ++i) {
      if (!buffers_[i].staged()) continue;
      (void)matrices_[i].for_each_run(
          {0, call_.tokens}, [&](size_t offset, size_t bytes) -> Status {
            kernels::copy(at(matrices_[i].data, offset), shown(i) + offset, bytes, false);
            return {};
          });
    }
  }

 private:
  const NormCall& call_;
  std::array<Matrix, kOutputs> matrices_;
  std::array<LocalBuffer, kOutputs> buffers_;
};

bool all_outputs_mapped(const Team& team, const Outputs& outputs) {
  for (int r = 0; r < team.size(); ++r) {
    for (size_t i = 0; i < kOutputs; ++i) {
      if (outputs.matrices()[i].data == nullptr) continue;
      if (team.annex(r).buffers[i].segment == BufferRef::kAddress) return false;
    }
  }
  return true;
}

// This rank's rows, to each of `to`.
Status reduce_share(Context& context, const Collective& call, const std::vector<NormOutputs>& to) {
  const NormCall& norm = *call.norm;
  const Rows mine = rows_of(norm, context.team.rank(), context.team.size());
  const size_t hidden = norm.norm.hidden;
  NormScratch scratch;
  return with_sources(context, call, {mine.begin * hidden, mine.end * hidden}, hidden,
                      [&](const void* const* src, size_t first, size_t count) {
                        reduce_rows(context, norm, src, first / hidden, count / hidden, to,
                                    scratch);
                      });
}

Status push_rows(Context& context, const Collective& call, const Outputs& outputs) {
  Team& team = context.team;
  std::vector<NormOutputs> to = {outputs.own()};
  for (int step = 1; step < team.size(); ++step) {
    const int r = (team.rank() + step) % team.size();
    std::array<void*, kOutputs> data{};
    for (size_t i = 0; i < data.size(); ++i) {
      if (outputs.matrices()[i].data == nullptr) continue;
      RemoteBuffer out;
      ZBCCL_RETURN_IF_ERROR(out.resolve(team, r, team.annex(r).buffers[i]));
      data[i] = out.direct();
    }
    to.push_back(outputs_at(*call.norm, data));
  }
  return reduce_share(context, call, to);
}

Status keep_and_fetch(Context& context, const Collective& call, const Outputs& outputs) {
  Team& team = context.team;
  ZBCCL_RETURN_IF_ERROR(reduce_share(context, call, {outputs.own()}));
  ZBCCL_RETURN_IF_ERROR(team.sync());
  for (int step = 1; step < team.size(); ++step) {
    const int r = (team.rank() + step) % team.size();
    const Rows theirs = rows_of(*call.norm, r, team.size());
    for (size_t i = 0; i < kOutputs; ++i) {
      const BufferRef& shown = team.annex(r).buffers[i];
      ZBCCL_RETURN_IF_ERROR(
          outputs.matrices()[i].for_each_run(theirs, [&](size_t offset, size_t bytes) -> Status {
            return pull(context, r, shown, {offset, bytes}, outputs.shown(i) + offset);
          }));
    }
  }
  return {};
}

Status two_shot(Context& context, const Collective& call) {
  Team& team = context.team;
  LocalBuffer input;
  Outputs outputs(*call.norm);
  ZBCCL_RETURN_IF_ERROR(input.open_input(team, call.send, call.count * type_size(call.type)));
  ZBCCL_RETURN_IF_ERROR(outputs.open(team, &team.next_annex()));
  context.staged = input.staged() || outputs.staged();
  ZBCCL_RETURN_IF_ERROR(team.enter(signature_of(context, call), input.ref(), {}, call.timeout));
  Status status = all_outputs_mapped(team, outputs) ? push_rows(context, call, outputs)
                                                    : keep_and_fetch(context, call, outputs);
  if (!status.ok()) return team.give_up(status);
  ZBCCL_RETURN_IF_ERROR(team.sync());
  outputs.finish();
  return {};
}

}  // namespace

Status all_reduce_rms_norm(Context& context, const Collective& call) {
  // For the message where ranks do not agree.
  Annex& annex = context.team.next_annex();
  annex.strides[0] = call.norm->outputs.row_stride;
  annex.strides[1] = call.norm->outputs.group_stride;
  annex.epsilon = call.norm->norm.epsilon;
  annex.scale = call.norm->norm.scale;
  return context.algorithm == plan::Algorithm::kOneShot ? one_shot(context, call)
                                                        : two_shot(context, call);
}

}  // namespace zbccl::collectives
