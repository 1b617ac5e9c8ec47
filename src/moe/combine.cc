#include "moe/combine.h"

#include <algorithm>
#include <utility>

#include "kernels/rows.h"

namespace zbccl::moe {
namespace {

// What a slot of a combine says, in Slot::own and refs.
enum Own { kStride, kRows, kWeights };
enum Ref { kY, kTopkWeights };

constexpr size_t kFetchBytes = size_t{512} << 10;  // of rows that plain loads do not reach

}  // namespace

Combiner::Combiner(collectives::Context& context, const zbcclMoeCombine_t& call, Handle& handle)
    : context_(context),
      team_(context.team),
      call_(call),
      handle_(handle),
      board_(handle.moe->board()),
      by_expert_(handle.by_expert()),
      topk_(static_cast<size_t>(std::max(handle.routing.num_topk, 1))) {}

Status Combiner::open() {
  const size_t y_bytes = rows_extent(handle_.used_rows(), shape_.stride, shape_.row_bytes);
  ZBCCL_RETURN_IF_ERROR(y_.open_input(team_, call_.y, y_bytes));
  const size_t weight_bytes =
      call_.recv_topk_weights == nullptr
          ? 0
          : static_cast<size_t>(handle_.used_rows()) * topk_ * sizeof(float);
  ZBCCL_RETURN_IF_ERROR(weights_.open_input(team_, call_.recv_topk_weights, weight_bytes));
  const uint64_t staged = (y_.staged() ? y_bytes : 0) + (weights_.staged() ? weight_bytes : 0);
  context_.staged = staged > 0;
  handle_.moe->count_staged(staged);
  return {};
}

Status Combiner::show(const Status& local, Milliseconds timeout) {
  Slot& slot = board_.next(team_);
  slot.terms[0] = handle_.number;
  slot.terms[1] = call_.type;
  slot.terms[2] = call_.hidden;
  slot.terms[3] = call_.pre_reduce != 0 ? 1 : 0;
  slot.own[kStride] = static_cast<int64_t>(shape_.stride);
  slot.own[kRows] = handle_.used_rows();
  slot.own[kWeights] = (call_.recv_topk_weights != nullptr ? kGiven : 0) |
                       (call_.combined_topk_weights != nullptr ? kWanted : 0);
  slot.refs[kY] = y_.ref();
  slot.refs[kTopkWeights] = weights_.ref();
  return board_.enter(team_, Operation::kMoeCombine, handle_.moe->number(), local,
                      {"the handle's number", "type", "hidden", "pre_reduce"}, timeout);
}

Status Combiner::check_weights() const {
  const auto missing = board_.missing_weights(team_, kWeights, kRows);
  if (!missing) return {};
  return error(Code::kInvalidUsage,
               "moe_combine: rank {} wants combined_topk_weights, and rank {} has rows and gives "
               "no recv_topk_weights",
               missing->first, missing->second);
}

Status Combiner::run(const Status& local, Milliseconds timeout) {
  context_.algorithm = plan::Algorithm::kDirect;
  Status status = local;
  if (status.ok()) {
    const auto checked = check_combine(call_, handle_, kHostMemory);
    status = checked.status();
    if (status.ok()) shape_ = *checked;
  }
  if (status.ok()) status = open();
  ZBCCL_RETURN_IF_ERROR(show(status, timeout));
  ZBCCL_RETURN_IF_ERROR(check_weights());
  peers_.resize(static_cast<size_t>(team_.size()));
  const int64_t tokens = handle_.routing.num_tokens;
  const size_t most_rows = by_expert_ ? topk_ : handle_.stops_each;
  // Tokens whose rows fit into the scratch memory together, should they have to be fetched.
  const auto batch = static_cast<int64_t>(
      std::max<size_t>(kFetchBytes / (std::max<size_t>(most_rows, 1) * shape_.row_bytes), 1));
  for (int64_t first = 0; first < tokens; first += batch) {
    if (status = add_tokens(first, std::min(first + batch, tokens)); !status.ok()) {
      return team_.give_up(status);
    }
  }
  context_.payload = static_cast<uint64_t>(tokens) * shape_.row_bytes;
  return team_.sync();  // nobody returns, and changes its y, before all have read it
}

Status Combiner::open_peer(int rank, Peer& peer) {
  const Slot& shown = board_.shown(team_, rank);
  peer.opened = true;
  peer.stride = static_cast<size_t>(shown.own[kStride]);
  if (rank == team_.rank()) {
    peer.y = static_cast<const std::byte*>(call_.y);
  } else {
    ZBCCL_RETURN_IF_ERROR(peer.remote.resolve(team_, rank, shown.refs[kY]));
    peer.y = peer.remote.direct();
  }
  const size_t weight_bytes = call_.combined_topk_weights == nullptr
                                  ? 0
                                  : static_cast<size_t>(shown.own[kRows]) * topk_ * sizeof(float);
  return peer.weights.open(team_, rank, shown.refs[kTopkWeights], call_.recv_topk_weights,
                           weight_bytes);
}

void Combiner::list_terms(int64_t token) {
  const Moe& moe = *handle_.moe;
  if (by_expert_) {
    const size_t first = static_cast<size_t>(token) * topk_;
    for (size_t k = 0; k < topk_; ++k) {
      const int32_t row = handle_.rows[first + k];
      if (row < 0) continue;
      const int32_t rank = moe.map().rank_of(handle_.experts[first + k]);
      if (!moe.masked(rank)) terms_.push_back({rank, row, static_cast<int32_t>(k)});
    }
  } else {
    const size_t first = static_cast<size_t>(token) * handle_.stops_each;
    for (size_t i = 0; i < handle_.stops_each && handle_.stops[first + i].rank >= 0; ++i) {
      const Handle::Stop& stop = handle_.stops[first + i];
      if (!moe.masked(stop.rank)) {
        terms_.push_back({stop.rank, stop.row, static_cast<int32_t>(i)});
      }
    }
  }
  ends_.push_back(terms_.size());
}

Status Combiner::add_tokens(int64_t first, int64_t end) {
  terms_.clear();
  ends_.clear();
  for (int64_t token = first; token < end; ++token) list_terms(token);
  ZBCCL_RETURN_IF_ERROR(place_rows());
  size_t at = 0;
  for (int64_t token = first; token < end; ++token) {
    const size_t until = ends_[static_cast<size_t>(token - first)];
    if (call_.pre_reduce != 0) {
      add_by_rank(token, at, until);
    } else {
      add_token(token, at, until);
    }
    if (call_.combined_topk_weights != nullptr) add_weights(token, at, until);
    at = until;
  }
  return {};
}

// Where the terms' rows can be read: where they lie, or in scratch memory, after they were fetched.
Status Combiner::place_rows() {
  rows_.resize(terms_.size());
  std::byte* scratch = nullptr;
  size_t fetched = 0;
  for (size_t i = 0; i < terms_.size(); ++i) {
    const Term& term = terms_[i];
    Peer& peer = peers_[static_cast<size_t>(term.rank)];
    if (!peer.opened) ZBCCL_RETURN_IF_ERROR(open_peer(term.rank, peer));
    const size_t offset = static_cast<size_t>(term.row) * peer.stride;
    if (peer.y != nullptr) {
      rows_[i] = peer.y + offset;
      continue;
    }
    if (scratch == nullptr) scratch = team_.scratch(terms_.size() * shape_.row_bytes);
    std::byte* const to = scratch + fetched++ * shape_.row_bytes;
    peer.pieces.push_back({to, offset, shape_.row_bytes});
    rows_[i] = to;
  }
  if (fetched == 0) return {};
  for (Peer& peer : peers_) {
    if (peer.pieces.empty()) continue;
    ZBCCL_RETURN_IF_ERROR(peer.remote.read_pieces(peer.pieces));
    peer.pieces.clear();
  }
  return {};
}

void Combiner::sum(const void* const* rows, const float* weights, size_t count,
                   int64_t token) const {
  const auto t = static_cast<size_t>(token);
  kernels::RowSum what{};
  what.src = rows;
  what.weights = weights;
  what.num_src = count;
  for (size_t b = 0; b < 2; ++b) {
    if (call_.bias[b] == nullptr) continue;
    what.bias[b] = static_cast<const std::byte*>(call_.bias[b]) + t * shape_.row_bytes;
  }
  what.out = static_cast<std::byte*>(call_.out) + t * shape_.out_stride;
  what.count = static_cast<size_t>(call_.hidden);
  what.type = static_cast<DataType>(call_.type);
  kernels::sum_rows(what);
}

void Combiner::add_token(int64_t token, size_t first_term, size_t end_term) {
  const float* weights = nullptr;
  if (call_.topk_weights != nullptr) {
    group_weights_.clear();
    const float* const own = call_.topk_weights + static_cast<size_t>(token) * topk_;
    for (size_t i = first_term; i < end_term; ++i) group_weights_.push_back(own[terms_[i].slot]);
    weights = group_weights_.data();
  }
  sum(rows_.data() + first_term, weights, end_term - first_term, token);
}

// The rows of each rank first, rounded, as the rank that has them would do it.
void Combiner::add_by_rank(int64_t token, size_t first_term, size_t end_term) {
  std::vector<int32_t> ranks;
  for (size_t i = first_term; i < end_term; ++i) ranks.push_back(terms_[i].rank);
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  partial_sums_.resize(std::max(partial_sums_.size(), ranks.size() * shape_.row_bytes));
  std::vector<const void*> partial;
  for (const int32_t rank : ranks) {
    group_rows_.clear();
    group_weights_.clear();
    for (size_t i = first_term; i < end_term; ++i) {
      if (terms_[i].rank != rank) continue;
      group_rows_.push_back(rows_[i]);
      if (call_.topk_weights == nullptr) continue;
      const size_t slot = static_cast<size_t>(token) * topk_ + static_cast<size_t>(terms_[i].slot);
      group_weights_.push_back(call_.topk_weights[slot]);
    }
    kernels::RowSum what{};
    what.src = group_rows_.data();
    what.weights = call_.topk_weights != nullptr ? group_weights_.data() : nullptr;
    what.num_src = group_rows_.size();
    what.out = partial_sums_.data() + partial.size() * shape_.row_bytes;
    what.count = static_cast<size_t>(call_.hidden);
    what.type = static_cast<DataType>(call_.type);
    kernels::sum_rows(what);
    partial.push_back(what.out);
  }
  sum(partial.data(), nullptr, partial.size(), token);
}

void Combiner::add_weights(int64_t token, size_t first_term, size_t end_term) {
  group_rows_.clear();
  for (size_t i = first_term; i < end_term; ++i) {
    const Peer& peer = peers_[static_cast<size_t>(terms_[i].rank)];
    group_rows_.push_back(peer.weights.as<float>() + static_cast<size_t>(terms_[i].row) * topk_);
  }
  kernels::RowSum what{};
  what.src = group_rows_.data();
  what.num_src = group_rows_.size();
  what.out = call_.combined_topk_weights + static_cast<size_t>(token) * topk_;
  what.count = topk_;
  what.type = DataType::kF32;
  kernels::sum_rows(what);
}

Status Moe::combine(collectives::Context& context, const zbcclMoeCombine_t& call, Handle& handle,
                    const Status& local, Milliseconds timeout) {
  Status status = local;
  if (!handle.on_device()) {
    status = Combiner(context, call, handle).run(local, timeout);
  } else if (status.ok()) {
    status = device_->combine(context, call, handle, timeout);
  }
  if (status.ok()) combines_.fetch_add(1, std::memory_order_relaxed);
  return status;
}

}  // namespace zbccl::moe
