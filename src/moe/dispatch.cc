#include "moe/dispatch.h"

#include <algorithm>
#include <cstring>

#include "kernels/reduce.h"
#include "kernels/rows.h"
#include "memory/pool.h"

namespace zbccl::moe {
namespace {

// What a slot of a dispatch says, in Slot::terms, own and refs.
enum Own { kStride, kScaleStride0, kScaleStride1, kTokens, kListAt, kWeights };
enum Ref { kX, kScales, kTopkWeights, kTables };

constexpr size_t kFetchBytes = size_t{256} << 10;  // of rows that are quantized from scratch memory

}  // namespace

// A rank whose rows come here.
struct Dispatcher::Source {
  int rank = 0;
  const std::byte* x = nullptr;  // null: not reached by plain loads
  transport::RemoteBuffer remote;
  size_t stride = 0;
  PeerArray scale_array;
  ScaleMatrix scales;
  PeerArray weights;
  PeerArray tables;
  const int32_t* experts = nullptr;
  const uint32_t* list = nullptr;
};

Dispatcher::Dispatcher(collectives::Context& context, const zbcclMoeDispatch_t& call,
                       Handle& handle)
    : context_(context),
      team_(context.team),
      call_(call),
      handle_(handle),
      board_(handle.moe->board()),
      by_expert_(handle.by_expert()),
      topk_(static_cast<uint32_t>(std::max(handle.routing.num_topk, 1))),
      quantizes_(call.quant != zbcclMoeQuantNone) {}

Status Dispatcher::open() {
  const auto tokens = static_cast<size_t>(handle_.routing.num_tokens);
  const size_t x_bytes = rows_extent(handle_.routing.num_tokens, shape_.stride, shape_.row_bytes);
  ZBCCL_RETURN_IF_ERROR(x_.open_input(team_, call_.x, x_bytes));
  const size_t scale_bytes =
      static_cast<size_t>(shape_.in_scales.extent(handle_.routing.num_tokens)) * 4;
  ZBCCL_RETURN_IF_ERROR(scales_.open_input(team_, call_.x_scales, scale_bytes));
  const size_t weight_bytes = call_.topk_weights == nullptr ? 0 : tokens * topk_ * sizeof(float);
  ZBCCL_RETURN_IF_ERROR(weights_.open_input(team_, call_.topk_weights, weight_bytes));
  const uint64_t staged = (x_.staged() ? x_bytes : 0) + (scales_.staged() ? scale_bytes : 0) +
                          (weights_.staged() ? weight_bytes : 0);
  context_.staged = staged > 0;
  handle_.moe->count_staged(staged);
  return {};
}

Status Dispatcher::show(const Status& local, Milliseconds timeout) {
  Slot& slot = board_.next(team_);
  slot.terms[0] = handle_.number;
  slot.terms[1] = call_.type;
  slot.terms[2] = call_.quant;
  slot.terms[3] = call_.hidden;
  slot.terms[4] = call_.num_scales;
  slot.own[kStride] = static_cast<int64_t>(shape_.stride);
  slot.own[kScaleStride0] = shape_.in_scales.row;
  slot.own[kScaleStride1] = shape_.in_scales.scale;
  slot.own[kTokens] = handle_.routing.num_tokens;
  slot.own[kListAt] = reinterpret_cast<const std::byte*>(handle_.list.data()) - handle_.block.data;
  const bool wanted = call_.recv_topk_weights != nullptr || call_.recv_row_weights != nullptr;
  slot.own[kWeights] = (call_.topk_weights != nullptr ? kGiven : 0) | (wanted ? kWanted : 0);
  slot.refs[kX] = x_.ref();
  slot.refs[kScales] = scales_.ref();
  slot.refs[kTopkWeights] = weights_.ref();
  if (handle_.block.data != nullptr) {
    const auto tables = memory::Pool::process().locate(handle_.block.data, handle_.block.bytes);
    slot.refs[kTables] = {tables->segment, 0, tables->offset};
  }
  return board_.enter(team_, Operation::kMoeDispatch, handle_.moe->number(), local,
                      {"the handle's number", "type", "quant", "hidden", "num_scales"}, timeout);
}

Status Dispatcher::check_weights() const {
  const auto missing = board_.missing_weights(team_, kWeights, kTokens);
  if (!missing) return {};
  return error(Code::kInvalidUsage,
               "moe_dispatch: rank {} wants the weights of the rows, and rank {} has tokens and "
               "gives no topk_weights",
               missing->first, missing->second);
}

Status Dispatcher::run(const Status& local, Milliseconds timeout) {
  context_.algorithm = plan::Algorithm::kDirect;
  Status status = local;
  if (status.ok()) {
    const auto checked = check_dispatch(call_, handle_, kHostMemory);
    status = checked.status();
    if (status.ok()) shape_ = *checked;
  }
  if (status.ok()) status = open();
  ZBCCL_RETURN_IF_ERROR(show(status, timeout));
  ZBCCL_RETURN_IF_ERROR(check_weights());
  const auto written = static_cast<size_t>(handle_.written_rows) * shape_.recv_row_bytes;
  streams_ = written >= context_.tuning.stream_min;
  context_.payload = written;
  for (int step = 1; step <= team_.size(); ++step) {
    const int r = (team_.rank() + step) % team_.size();
    if (status = receive(r); !status.ok()) return team_.give_up(status);
  }
  team_.signal();
  fill_gaps();
  return team_.wait();  // nobody returns, and changes its input, before all have read it
}

Status Dispatcher::open_source(int rank, Source& source) {
  const Slot& shown = board_.shown(team_, rank);
  const bool own = rank == team_.rank();
  source.rank = rank;
  source.stride = static_cast<size_t>(shown.own[kStride]);
  if (own) {
    source.x = static_cast<const std::byte*>(call_.x);
  } else {
    ZBCCL_RETURN_IF_ERROR(source.remote.resolve(team_, rank, shown.refs[kX]));
    source.x = source.remote.direct();
  }
  const int64_t tokens = shown.own[kTokens];
  source.scales = {call_.num_scales, shown.own[kScaleStride0], shown.own[kScaleStride1]};
  const auto scale_bytes = static_cast<size_t>(source.scales.extent(tokens)) * 4;
  ZBCCL_RETURN_IF_ERROR(
      source.scale_array.open(team_, rank, shown.refs[kScales], call_.x_scales, scale_bytes));
  const bool weights = call_.recv_topk_weights != nullptr || call_.recv_row_weights != nullptr;
  const size_t weight_bytes = weights ? static_cast<size_t>(tokens) * topk_ * sizeof(float) : 0;
  ZBCCL_RETURN_IF_ERROR(
      source.weights.open(team_, rank, shown.refs[kTopkWeights], call_.topk_weights, weight_bytes));
  ZBCCL_RETURN_IF_ERROR(source.tables.open(team_, rank, shown.refs[kTables], handle_.block.data,
                                           static_cast<size_t>(shown.own[kListAt])));
  source.experts = source.tables.as<int32_t>();
  source.list =
      reinterpret_cast<const uint32_t*>(source.tables.as<std::byte>() + shown.own[kListAt]);
  return {};
}

Status Dispatcher::receive(int rank) {
  const Slot& shown = board_.shown(team_, rank);
  if (shown.own[kTokens] == 0) return {};
  Source source;
  ZBCCL_RETURN_IF_ERROR(open_source(rank, source));
  const bool copies = source.x != nullptr && !quantizes_;
  moves_.clear();
  repeats_.clear();
  first_rows_.assign(copies ? 0 : static_cast<size_t>(shown.own[kTokens]), -1);
  ZBCCL_RETURN_IF_ERROR(
      handle_.for_each_section(rank, source.list, [&](const Handle::Section& section) -> Status {
        if (copies) {
          copy_rows(source, section);
        } else {
          list_moves(section);
        }
        if (!quantizes_ && shape_.out_scales.per_row > 0) copy_scales(source, section);
        write_notes(source, section);
        return {};
      }));
  if (copies) return {};
  ZBCCL_RETURN_IF_ERROR(make_moves(source));
  repeat_rows();
  return {};
}

void Dispatcher::copy_rows(const Source& source, const Handle::Section& section) {
  const bool joins = source.stride == shape_.row_bytes && shape_.recv_stride == shape_.row_bytes;
  for (int64_t i = 0; i < section.count;) {
    const uint32_t token = token_of(section.items[i]);
    int64_t run = 1;  // rows that lie one behind the other here and there
    while (joins && i + run < section.count && token_of(section.items[i + run]) == token + run) {
      ++run;
    }
    kernels::copy(recv_row(section.row + i), source.x + token * source.stride,
                  static_cast<size_t>(run) * shape_.row_bytes, streams_);
    i += run;
  }
}

void Dispatcher::list_moves(const Handle::Section& section) {
  for (int64_t i = 0; i < section.count; ++i) {
    const uint32_t token = token_of(section.items[i]);
    int64_t& first = first_rows_[token];
    if (first >= 0) {
      repeats_.push_back({first, section.row + i});
    } else {
      first = section.row + i;
      moves_.push_back({token, first});
    }
  }
}

Status Dispatcher::make_moves(Source& source) {
  if (source.x == nullptr) return quantizes_ ? fetch_and_quantize(source) : fetch_rows(source);
  for (const Move& move : moves_) quantize(source.x + move.token * source.stride, move.row);
  return {};
}

Status Dispatcher::fetch_rows(Source& source) {
  pieces_.clear();
  for (const Move& move : moves_) {
    pieces_.push_back({recv_row(move.row), move.token * source.stride, shape_.row_bytes});
  }
  return source.remote.read_pieces(pieces_);
}

Status Dispatcher::fetch_and_quantize(Source& source) {
  const size_t batch = std::max<size_t>(kFetchBytes / shape_.row_bytes, 1);
  std::byte* const scratch = team_.scratch(batch * shape_.row_bytes);
  for (size_t first = 0; first < moves_.size(); first += batch) {
    const auto some = std::span(moves_).subspan(first, std::min(batch, moves_.size() - first));
    pieces_.clear();
    for (const Move& move : some) {
      pieces_.push_back({scratch + pieces_.size() * shape_.row_bytes, move.token * source.stride,
                         shape_.row_bytes});
    }
    ZBCCL_RETURN_IF_ERROR(source.remote.read_pieces(pieces_));
    for (size_t i = 0; i < some.size(); ++i) quantize(scratch + i * shape_.row_bytes, some[i].row);
  }
  return {};
}

void Dispatcher::repeat_rows() {
  for (const Repeat& repeat : repeats_) {
    kernels::copy(recv_row(repeat.row), recv_row(repeat.from), shape_.recv_row_bytes, streams_);
    if (!quantizes_) continue;
    const uint32_t* const from = recv_scales(repeat.from);
    uint32_t* const to = recv_scales(repeat.row);
    for (int64_t i = 0; i < shape_.out_scales.per_row; ++i) {
      to[i * shape_.out_scales.scale] = from[i * shape_.out_scales.scale];
    }
  }
}

void Dispatcher::quantize(const std::byte* row, int64_t to) {
  const auto hidden = static_cast<size_t>(call_.hidden);
  const bool packed = call_.quant == zbcclMoeQuantFp8Ue8m0;
  constexpr size_t kGroup = kScaleGroup;
  const size_t groups = (hidden + kGroup - 1) / kGroup;
  row_scales_.resize(groups);
  kernels::RowQuantization what{};
  what.src = row;
  what.count = hidden;
  what.type = static_cast<DataType>(call_.type);
  what.code = call_.quant == zbcclMoeQuantInt8 ? DataType::kI8 : DataType::kE4m3;
  what.power_of_two = packed || call_.quant == zbcclMoeQuantFp8Pow2;
  what.codes = recv_row(to);
  what.scales = row_scales_.data();
  kernels::quantize_row(what);
  const auto scales = static_cast<size_t>(shape_.out_scales.per_row);
  packed_scales_.assign(scales, 0);
  if (packed) {
    for (size_t g = 0; g < groups; ++g) {
      uint32_t bits = 0;
      std::memcpy(&bits, &row_scales_[g], sizeof bits);
      packed_scales_[g / 4] |= (bits >> 23) << (8 * (g % 4));
    }
  } else {
    std::memcpy(packed_scales_.data(), row_scales_.data(), scales * sizeof(float));
  }
  write_scales(to, packed_scales_.data());
}

void Dispatcher::copy_scales(const Source& source, const Handle::Section& section) {
  const bool contiguous = source.scales.scale == 1 && shape_.out_scales.scale == 1;
  for (int64_t i = 0; i < section.count; ++i) {
    const uint32_t* const from =
        source.scale_array.as<uint32_t>() + source.scales.offset(token_of(section.items[i]));
    uint32_t* const to = recv_scales(section.row + i);
    if (contiguous) {
      std::memcpy(to, from, static_cast<size_t>(shape_.out_scales.per_row) * sizeof *to);
      continue;
    }
    for (int64_t s = 0; s < shape_.out_scales.per_row; ++s) {
      to[s * shape_.out_scales.scale] = from[s * source.scales.scale];
    }
  }
}

void Dispatcher::write_notes(const Source& source, const Handle::Section& section) {
  for (int64_t i = 0; i < section.count; ++i) {
    const uint32_t item = section.items[i];
    const int64_t row = section.row + i;
    if (call_.recv_src_idx != nullptr) {
      call_.recv_src_idx[row] = static_cast<int32_t>(token_of(item));
    }
    if (call_.recv_row_weights != nullptr) {
      call_.recv_row_weights[row] = source.weights.as<float>()[item];
    }
    if (!by_expert_) write_topk(source, item, row);
  }
}

void Dispatcher::write_topk(const Source& source, uint32_t token, int64_t row) {
  const ExpertMap& map = handle_.moe->map();
  const size_t from = static_cast<size_t>(token) * topk_;
  const size_t to = static_cast<size_t>(row) * topk_;
  for (size_t k = 0; k < topk_; ++k) {
    const int32_t expert = source.experts[from + k];
    const bool here = expert >= 0 && map.rank_of(expert) == team_.rank();
    if (call_.recv_topk_idx != nullptr) {
      const int32_t narrow = here ? map.local_of(expert) : -1;
      const int64_t wide = narrow;
      // At any alignment.
      auto* const out = static_cast<std::byte*>(call_.recv_topk_idx);
      if (handle_.routing.idx_type == zbcclInt64) {
        std::memcpy(out + (to + k) * sizeof wide, &wide, sizeof wide);
      } else {
        std::memcpy(out + (to + k) * sizeof narrow, &narrow, sizeof narrow);
      }
    }
    if (call_.recv_topk_weights != nullptr) {
      call_.recv_topk_weights[to + k] = here ? source.weights.as<float>()[from + k] : 0.0F;
    }
  }
}

// Rows that no token fills. An ExpertMasked's are left as they are unless zeroes are asked for.
void Dispatcher::fill_gaps() {
  const Places& places = handle_.places;
  if (by_expert_) {
    if (handle_.layout() == Layout::kExpertMasked && call_.zero_padding == 0) return;
    for (size_t e = 0; e < handle_.expert_counts.size(); ++e) {
      fill_gap(places.offsets[e] + handle_.expert_counts[e], places.offsets[e + 1]);
    }
  }
  fill_gap(by_expert_ ? places.offsets.back() : places.num_rows, places.allocated_rows);
}

void Dispatcher::fill_gap(int64_t begin, int64_t end) {
  end = std::min(end, handle_.places.allocated_rows);
  const auto index = type_size(static_cast<DataType>(handle_.routing.idx_type));
  for (int64_t row = begin; row < end; ++row) {
    const size_t slot = static_cast<size_t>(row) * topk_;
    if (call_.recv_src_idx != nullptr) call_.recv_src_idx[row] = -1;
    if (call_.recv_row_weights != nullptr) call_.recv_row_weights[row] = 0.0F;
    if (call_.recv_topk_idx != nullptr) {  // all ones are -1
      std::memset(static_cast<std::byte*>(call_.recv_topk_idx) + slot * index, 0xFF, topk_ * index);
    }
    if (call_.recv_topk_weights != nullptr) {
      std::fill_n(call_.recv_topk_weights + slot, topk_, 0.0F);
    }
    if (call_.zero_padding == 0) continue;
    std::memset(recv_row(row), 0, shape_.recv_row_bytes);
    if (shape_.out_scales.per_row == 0) continue;
    packed_scales_.assign(static_cast<size_t>(shape_.out_scales.per_row), 0);
    write_scales(row, packed_scales_.data());
  }
}

Status Moe::dispatch(collectives::Context& context, const zbcclMoeDispatch_t& call, Handle& handle,
                     const Status& local, Milliseconds timeout) {
  if (handle.routes_later) return route_and_dispatch(context, call, handle, local, timeout);
  Status status = local;
  if (!handle.on_device()) {
    status = Dispatcher(context, call, handle).run(local, timeout);
  } else if (status.ok()) {
    status = device_->dispatch(context, call, handle, timeout);
  }
  if (status.ok()) dispatches_.fetch_add(1, std::memory_order_relaxed);
  return status;
}

}  // namespace zbccl::moe
