// The one exchange of counts. One meeting: each rank shows how many rows it has for every expert
// and rank, and from all of these every rank computes every place.
#include <cstring>
#include <limits>

#include "moe/device.h"
#include "moe/handle.h"
#include "moe/shapes.h"
#include "moe/topk.h"

namespace zbccl::moe {
namespace {

constexpr size_t kListAlignment = 128;

// `device`: as check_dispatch().
Status check(const zbcclMoeRouting_t& routing, size_t local_experts, int device) {
  if (routing.idx_type != zbcclInt32 && routing.idx_type != zbcclInt64) {
    return error(Code::kInvalidArgument, "idx_type is {}, expected zbcclInt32 or zbcclInt64",
                 routing.idx_type);
  }
  if (routing.layout < zbcclMoeRankMajor || routing.layout > zbcclMoeExpertMasked) {
    return error(Code::kInvalidArgument, "{} is not a zbcclMoeLayout_t", routing.layout);
  }
  if (routing.num_topk < 1 || routing.num_topk > ZBCCL_MOE_MAX_TOPK) {
    return error(Code::kInvalidArgument, "num_topk is {}, expected 1 to {}", routing.num_topk,
                 ZBCCL_MOE_MAX_TOPK);
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (routing.num_tokens < 0 || routing.num_tokens > kMost / routing.num_topk) {
    return error(Code::kInvalidArgument, "num_tokens is {}, expected 0 to {}", routing.num_tokens,
                 kMost / routing.num_topk);
  }
  if (routing.alignment < 1 || routing.alignment > 1 << 20) {
    return error(Code::kInvalidArgument, "alignment is {}, expected 1 to {}", routing.alignment,
                 1 << 20);
  }
  const bool masked = routing.layout == zbcclMoeExpertMasked;
  const int64_t least = masked ? 1 : 0;
  const auto each = masked ? static_cast<int64_t>(std::max<size_t>(local_experts, 1)) : int64_t{1};
  if (routing.capacity < least || routing.capacity > kMost / each) {
    return error(Code::kInvalidArgument, "capacity is {}, expected {} to {}", routing.capacity,
                 least, kMost / each);
  }
  if (routing.with_dispatch != 0 && routing.capacity == 0) {
    return error(Code::kInvalidArgument,
                 "with_dispatch needs a capacity: the outputs are made before it is known how many "
                 "rows come");
  }
  if (routing.topk_idx == nullptr && routing.num_tokens > 0) {
    return error(Code::kInvalidArgument, "`topk_idx` is a null pointer");
  }
  ZBCCL_RETURN_IF_ERROR(check_array(routing.topk_idx, 1, "topk_idx", device));
  if (routing.recv_ranges != nullptr && routing.layout == zbcclMoeRankMajor) {
    return error(Code::kInvalidArgument, "recv_ranges belongs to the expert layouts");
  }
  ZBCCL_RETURN_IF_ERROR(check_array(routing.recv_ranges, sizeof(int64_t), "recv_ranges", device));
  ZBCCL_RETURN_IF_ERROR(check_array(routing.recv_counts, sizeof(int32_t), "recv_counts", device));
  return check_array(routing.recv_status, sizeof(int64_t), "recv_status", device);
}

// This rank's own tokens: what its board shows, and the handle's tables for the peers.
Status read_tokens(const zbcclMoeRouting_t& routing, const ExpertMap& map,
                   std::span<int32_t> counts, std::span<int32_t> rank_counts, Handle& handle) {
  const auto tokens = static_cast<size_t>(routing.num_tokens);
  const auto topk = static_cast<size_t>(routing.num_topk);
  const bool by_expert = routing.layout != zbcclMoeRankMajor;
  const size_t slots = tokens * topk;
  const size_t most = by_expert ? slots : tokens * std::min(topk, rank_counts.size());
  const size_t experts_bytes =
      (slots * sizeof(int32_t) + kListAlignment - 1) / kListAlignment * kListAlignment;
  ZBCCL_ASSIGN_OR_RETURN(handle.block,
                         handle.moe->take_block(experts_bytes + most * sizeof(uint32_t)));
  auto* const experts = reinterpret_cast<int32_t*>(handle.block.data);
  auto* const list = reinterpret_cast<uint32_t*>(handle.block.data + experts_bytes);
  handle.experts = {experts, slots};
  ZBCCL_RETURN_IF_ERROR(read_topk(routing.topk_idx, static_cast<DataType>(routing.idx_type),
                                  routing.num_tokens, routing.num_topk, map, experts, counts,
                                  rank_counts));
  size_t length = 0;
  if (by_expert) {
    list_slots(handle.experts, map, counts, list);
    for (const int32_t count : counts) length += static_cast<size_t>(count);
  } else {
    list_tokens(handle.experts, routing.num_topk, map, rank_counts, list);
    for (const int32_t count : rank_counts) length += static_cast<size_t>(count);
  }
  handle.list = {list, length};
  return {};
}

// All ranks' counts. Where one of two ranks masks the other, nothing goes between them; lists are
// as they were, so their beginnings are counted before that.
void read_table(const Board& board, const transport::Team& team, Handle& handle) {
  const ExpertMap& map = handle.moe->map();
  const auto ranks = static_cast<size_t>(team.size());
  const auto experts = static_cast<size_t>(map.num_experts());
  const int me = team.rank();
  Table& table = handle.table;
  table.counts.resize(ranks * experts);
  table.rank_counts.resize(ranks * ranks);
  table.capacities.resize(ranks);
  handle.list_begins.assign(ranks, 0);
  for (size_t s = 0; s < ranks; ++s) {
    const int source = static_cast<int>(s);
    int32_t* const counts = table.counts.data() + s * experts;
    int32_t* const rank_counts = table.rank_counts.data() + s * ranks;
    std::memcpy(counts, board.shown_counts(team, source), experts * sizeof *counts);
    std::memcpy(rank_counts, board.shown_rank_counts(team, source), ranks * sizeof *rank_counts);
    table.capacities[s] = board.shown(team, source).own[0];
    int64_t& begin = handle.list_begins[s];
    if (handle.by_expert()) {
      for (int32_t place = 0; place < map.first_place(me); ++place) {
        begin += counts[map.by_place()[static_cast<size_t>(place)]];
      }
    } else {
      for (int r = 0; r < me; ++r) begin += rank_counts[r];
    }
    for (size_t d = 0; d < ranks; ++d) {
      const int to = static_cast<int>(d);
      if (board.shown_mask(team, source)[d] == 0 && board.shown_mask(team, to)[s] == 0) continue;
      rank_counts[d] = 0;
      for (const int32_t expert : map.experts_of(to)) counts[expert] = 0;
    }
  }
}

// Where the rows of this rank's tokens are on `rank`. `at`: this rank's list from there on.
// `counts`: as shown, not masked.
void note_rows(Handle& handle, const Places& places, int rank, const int32_t* counts,
               const uint32_t*& at) {
  const ExpertMap& map = handle.moe->map();
  const auto me = static_cast<size_t>(handle.moe->rank());
  const auto ranks = static_cast<size_t>(map.num_ranks());
  const std::span<const int32_t> experts = map.experts_of(rank);
  for (size_t e = 0; e < experts.size(); ++e) {
    const auto expert = static_cast<size_t>(experts[e]);
    const int64_t count = handle.table.counts[me * static_cast<size_t>(map.num_experts()) + expert];
    const int64_t begin = places.begins[e * ranks + me];
    const int64_t kept = rows_kept(begin, count, places.limits[e]);
    for (int64_t i = 0; i < kept; ++i) handle.rows[at[i]] = static_cast<int32_t>(begin + i);
    handle.send_overflow = handle.send_overflow || kept < count;
    at += counts[expert];
  }
}

// The same for RankMajor. `filled`: the stops of each token so far.
void note_stops(Handle& handle, const Places& places, int rank, int32_t count,
                std::vector<uint8_t>& filled, const uint32_t*& at) {
  const auto me = static_cast<size_t>(handle.moe->rank());
  const int64_t begin = places.offsets[me];
  const int64_t wanted = places.offsets[me + 1] - begin;
  const int64_t kept = rows_kept(begin, wanted, places.limits[0]);
  for (int64_t i = 0; i < kept; ++i) {
    const uint32_t token = at[i];
    handle.stops[token * handle.stops_each + filled[token]++] = {rank,
                                                                 static_cast<int32_t>(begin + i)};
  }
  handle.send_overflow = handle.send_overflow || kept < wanted;
  at += count;
}

// Every rank's places, of which this rank keeps its own, and where its rows are on the others.
Status compute_places(const Board& board, const transport::Team& team, Handle& handle) {
  const ExpertMap& map = handle.moe->map();
  const auto tokens = static_cast<size_t>(handle.routing.num_tokens);
  const auto topk = static_cast<size_t>(handle.routing.num_topk);
  std::vector<uint8_t> filled;
  if (handle.by_expert()) {
    handle.rows.assign(tokens * topk, -1);
  } else {
    handle.stops_each = std::min(topk, static_cast<size_t>(team.size()));
    handle.stops.assign(tokens * handle.stops_each, {});
    filled.assign(tokens, 0);
  }
  const uint32_t* at = handle.list.data();
  for (int r = 0; r < team.size(); ++r) {
    ZBCCL_ASSIGN_OR_RETURN(
        Places places, places_of(handle.table, map, r, handle.layout(), handle.routing.alignment));
    if (handle.by_expert()) {
      note_rows(handle, places, r, board.shown_counts(team, team.rank()), at);
    } else {
      note_stops(handle, places, r, board.shown_rank_counts(team, team.rank())[r], filled, at);
    }
    if (r == team.rank()) handle.places = std::move(places);
  }
  return {};
}

template <typename T>
int64_t bytes_of(const std::vector<T>& values) {
  return static_cast<int64_t>(values.capacity() * sizeof(T));
}

void count_metadata(Handle& handle) {
  const Table& table = handle.table;
  handle.counted_bytes = static_cast<int64_t>(handle.block.bytes) + bytes_of(table.counts) +
                         bytes_of(table.rank_counts) + bytes_of(handle.places.offsets) +
                         bytes_of(handle.places.begins) + bytes_of(handle.rows) +
                         bytes_of(handle.stops) + bytes_of(handle.source_counts);
  handle.moe->count_handle(0, handle.counted_bytes);
}

void write_results(const zbcclMoeRouting_t& routing, const Handle& handle) {
  if (routing.recv_counts != nullptr && !handle.expert_counts.empty()) {
    std::memcpy(routing.recv_counts, handle.expert_counts.data(),
                handle.expert_counts.size() * sizeof(int32_t));
  }
  const size_t ranks = handle.table.capacities.size();
  for (size_t i = 0; routing.recv_ranges != nullptr && i < handle.source_counts.size(); ++i) {
    const int64_t first = handle.places.begins[i] - handle.places.offsets[i / ranks];
    routing.recv_ranges[i] = first << 32 | handle.source_counts[i];
  }
  if (routing.recv_status == nullptr) return;
  routing.recv_status[0] = handle.written_rows;
  routing.recv_status[1] = handle.places.needed_capacity;
  routing.recv_status[2] = handle.places.overflow ? 1 : 0;
}

}  // namespace

Status Moe::route(collectives::Context& context, const zbcclMoeRouting_t& routing, Handle& handle,
                  const Status& local, Milliseconds timeout) {
  handle.routing = routing;
  handle.routes_later = routing.with_dispatch != 0 && local.ok();
  return handle.routes_later ? Status() : route_now(context, handle, local, timeout);
}

Status Moe::route_now(collectives::Context& context, Handle& handle, const Status& local,
                      Milliseconds timeout) {
  handle.number = ++routed_;
  Status status = local;
  if (!handle.on_device()) {
    status = route_on_host(context, handle, local, timeout);
    handle.state.store(status.ok() ? 1 : 2, std::memory_order_release);
  } else {
    if (status.ok()) status = check_device(handle);
    if (status.ok()) status = device_->route(context, handle.routing, handle, timeout);
    if (!status.ok()) handle.state.store(2, std::memory_order_release);
  }
  if (status.ok()) routes_.fetch_add(1, std::memory_order_relaxed);
  return status;
}

Status Moe::check_device(const Handle& handle) const {
  if (device_ == nullptr) {
    return error(Code::kUnsupported,
                 "{} experts are not served on device memory: they are too many, or the GPUs "
                 "do not reach each other's memory",
                 map_.num_experts());
  }
  return check(handle.routing, map_.experts_of(rank_).size(), device());
}

Status Moe::route_on_host(collectives::Context& context, Handle& handle, const Status& local,
                          Milliseconds timeout) {
  transport::Team& team = context.team;
  const zbcclMoeRouting_t& routing = handle.routing;
  context.algorithm = plan::Algorithm::kDirect;
  Slot& slot = board_.next(team);
  Status status = local;
  if (status.ok()) status = check(routing, map_.experts_of(rank_).size(), kHostMemory);
  if (status.ok()) {
    status =
        read_tokens(routing, map_, board_.next_counts(team), board_.next_rank_counts(team), handle);
  }
  std::copy(masked_.begin(), masked_.end(), board_.next_mask(team).begin());
  slot.terms[0] = routing.num_topk;
  slot.terms[1] = routing.idx_type;
  slot.terms[2] = routing.layout;
  slot.terms[3] = routing.layout == zbcclMoeExpertMajor ? routing.alignment : 1;
  slot.own[0] = routing.capacity;
  ZBCCL_RETURN_IF_ERROR(board_.enter(team, Operation::kMoeRoute, number_, status,
                                     {"num_topk", "idx_type", "layout", "alignment"}, timeout));
  read_table(board_, team, handle);
  ZBCCL_RETURN_IF_ERROR(compute_places(board_, team, handle));
  ZBCCL_RETURN_IF_ERROR(team.confirm());
  handle.count_rows();
  count_metadata(handle);
  write_results(routing, handle);
  return {};
}

// On the host the two are one behind the other: the counts decide what a rank reads.
Status Moe::route_and_dispatch(collectives::Context& context, const zbcclMoeDispatch_t& call,
                               Handle& handle, const Status& local, Milliseconds timeout) {
  handle.routes_later = false;
  if (!handle.on_device()) {
    ZBCCL_RETURN_IF_ERROR(route_now(context, handle, local, timeout));
    return dispatch(context, call, handle, Status(), timeout);
  }
  handle.number = ++routed_;
  Status status = local;
  if (status.ok()) status = check_device(handle);
  if (status.ok()) status = device_->route_and_dispatch(context, call, handle, timeout);
  if (!status.ok()) {
    handle.state.store(2, std::memory_order_release);
    return status;
  }
  routes_.fetch_add(1, std::memory_order_relaxed);
  dispatches_.fetch_add(1, std::memory_order_relaxed);
  return {};
}

}  // namespace zbccl::moe
