#include "moe_perf/exchange.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "moe_perf/numbers.h"
#include "perf/data.h"

namespace zbccl::tools {
namespace {

// Runs a call at once or, with `two_phases`, as sending and then receiving.
template <typename Args, typename Call>
void run(bool two_phases, Args& args, Call&& call) {
  args.phase = two_phases ? zbcclMoeSendPhase : zbcclMoeBothPhases;
  call();
  if (!two_phases) return;
  args.phase = zbcclMoeReceivePhase;
  call();
}

}  // namespace

void* MoeExchange::Area::take(size_t bytes, bool registered, MoeDevice* device) {
  used_ = bytes;
  if (!memory_ || bytes > room_) {
    memory_.reset();
    twin_.reset();
    memory_.emplace(bytes, registered && device == nullptr);
    if (device != nullptr) twin_ = device->make(bytes);
    room_ = bytes;
  }
  return memory_->data();
}

void MoeExchange::Area::poison() const {
  if (!memory_) return;
  tools::poison(used_, memory_->data());
  upload();
}

void MoeExchange::Area::upload() const {
  if (twin_ != nullptr) twin_->upload(memory_->data(), used_);
}

void MoeExchange::Area::download() const {
  if (twin_ != nullptr) twin_->download(memory_->data(), used_);
}

MoeExchange::MoeExchange(Communicator& comm, const MoeOptions& options, const MoeShape& shape,
                         MoeDevice* device)
    : options_(options),
      device_(device),
      shape_(shape),
      rank_(comm.rank()),
      moe_(device != nullptr ? device->comm() : comm, shape.experts) {}

void MoeExchange::fill(const Batch& batch) {
  const bool registered = !options_.unregistered;
  const size_t row = plain_row_bytes(shape_);
  const auto tokens = static_cast<size_t>(shape_.tokens);
  const auto topk = batch.topk(rank_);
  auto* x = static_cast<std::byte*>(tokens_.take(tokens * row, registered, device_));
  for (size_t t = 0; t < tokens; ++t) batch.token(rank_, static_cast<int64_t>(t), x + t * row);
  const size_t rows = placement_->rows.size();
  auto* y = static_cast<std::byte*>(results_.take(rows * row, registered, device_));
  for (size_t i = 0; i < rows; ++i) {
    // Nobody reads what padding holds.
    if (placement_->rows[i].rank >= 0) batch.result(rank_, static_cast<int64_t>(i), y + i * row);
  }
  auto* idx = static_cast<int64_t*>(topk_.take(topk.size_bytes(), registered, device_));
  std::copy(topk.begin(), topk.end(), idx);
  auto* weights =
      static_cast<float*>(weights_.take(batch.weights(rank_).size_bytes(), registered, device_));
  std::copy(batch.weights(rank_).begin(), batch.weights(rank_).end(), weights);
  if (shape_.given) quantize_tokens(x);
  for (const Area* area : {&tokens_, &results_, &topk_, &weights_}) area->upload();
  inputs_ = {x, idx, weights, y, combined_.take(tokens * row, registered, device_)};
}

void MoeExchange::quantize_tokens(const std::byte* x) {
  const bool registered = !options_.unregistered;
  const size_t row = plain_row_bytes(shape_);
  const auto tokens = static_cast<size_t>(shape_.tokens);
  const auto hidden = static_cast<size_t>(shape_.hidden);
  const auto scales = static_cast<size_t>(scales_of(shape_));
  auto* codes = static_cast<uint8_t*>(codes_.take(tokens * hidden, registered, device_));
  auto* of_codes = static_cast<uint32_t*>(
      code_scales_.take(tokens * scales * sizeof(float), registered, device_));
  std::vector<float> values(hidden);
  for (size_t t = 0; t < tokens; ++t) {
    widen(shape_.type, x + t * row, values);
    quantize(shape_.quant, values, codes + t * hidden, of_codes + t * scales);
  }
  codes_.upload();
  code_scales_.upload();
}

void MoeExchange::load(const Batch& batch) {
  placement_.emplace(batch, rank_);
  // A capacity is at least one row.
  if (options_.graph && placement_->rows.empty()) placement_->rows.emplace_back();
  fill(batch);
  routing_ = moe_routing(static_cast<const int64_t*>(topk_.given()), shape_.tokens, shape_.topk,
                         shape_.layout);
  routing_.alignment = shape_.alignment;
  routing_.capacity = capacity_of(shape_);
  if (options_.graph && shape_.layout != zbcclMoeExpertMasked) {
    routing_.capacity = static_cast<int64_t>(placement_->rows.size());
  }
  // Graphs keep the handle, and what the checks ask comes after the first dispatch.
  routing_.with_dispatch = options_.low_latency && !options_.cached ? 1 : 0;
  handle_ = moe_.route(routing_, how());

  const bool registered = !options_.unregistered;
  const size_t rows = placement_->rows.size();
  const size_t slots = rows * static_cast<size_t>(shape_.topk);
  dispatch_.type = shape_.type;
  dispatch_.quant = shape_.quant;
  dispatch_.hidden = shape_.hidden;
  dispatch_.x = tokens_.given();
  if (shape_.given) {
    dispatch_.type = zbcclFloat8e4m3;
    dispatch_.quant = zbcclMoeQuantNone;
    dispatch_.x = codes_.given();
    dispatch_.x_scales = code_scales_.given();
    dispatch_.num_scales = static_cast<int32_t>(scales_of(shape_));
  }
  outputs_ = {};
  outputs_.rows = rows_.take(rows * row_bytes(shape_), registered, device_);
  dispatch_.recv_x = rows_.given();
  const auto scales = static_cast<size_t>(scales_of(shape_));
  if (scales > 0) {
    outputs_.scales = static_cast<const uint32_t*>(
        scales_.take(rows * scales * sizeof(float), registered, device_));
    dispatch_.recv_scales = scales_.given();
  }
  if (!options_.cached) {
    dispatch_.topk_weights = static_cast<const float*>(weights_.given());
    if (shape_.layout == zbcclMoeRankMajor) {
      outputs_.topk_idx =
          static_cast<const int64_t*>(recv_idx_.take(slots * sizeof(int64_t), registered, device_));
      outputs_.topk_weights =
          static_cast<const float*>(recv_weights_.take(slots * sizeof(float), registered, device_));
      dispatch_.recv_topk_idx = recv_idx_.given();
      dispatch_.recv_topk_weights = static_cast<float*>(recv_weights_.given());
    } else {
      outputs_.row_weights =
          static_cast<const float*>(row_weights_.take(rows * sizeof(float), registered, device_));
      dispatch_.recv_row_weights = static_cast<float*>(row_weights_.given());
    }
    outputs_.src_idx =
        static_cast<const int32_t*>(src_idx_.take(rows * sizeof(int32_t), registered, device_));
    dispatch_.recv_src_idx = static_cast<int32_t*>(src_idx_.given());
  }
  combine_.type = shape_.type;
  combine_.hidden = shape_.hidden;
  combine_.y = results_.given();
  combine_.topk_weights =
      shape_.layout == zbcclMoeRankMajor ? nullptr : static_cast<const float*>(weights_.given());
  combine_.out = combined_.given();
  combine_.pre_reduce = shape_.pre_reduce ? 1 : 0;
}

void MoeExchange::poison_outputs() {
  for (const Area* area :
       {&rows_, &scales_, &recv_idx_, &recv_weights_, &row_weights_, &src_idx_, &combined_}) {
    area->poison();
  }
}

void MoeExchange::fetch_outputs() {
  for (const Area* area :
       {&rows_, &scales_, &recv_idx_, &recv_weights_, &row_weights_, &src_idx_, &combined_}) {
    area->download();
  }
}

void MoeExchange::dispatch() {
  if (!options_.cached) handle_ = moe_.route(routing_, how());
  run(options_.two_phases, dispatch_, [&] { handle_.dispatch(dispatch_, how()); });
}

void MoeExchange::combine() {
  run(options_.two_phases, combine_, [&] { handle_.combine(combine_, how()); });
}

uint64_t MoeExchange::wrong_gaps() const {
  if (shape_.layout != zbcclMoeExpertMasked) return 0;
  const size_t bytes = row_bytes(shape_);
  const auto* rows = static_cast<const std::byte*>(outputs_.rows);
  uint64_t wrong = 0;
  for (size_t i = 0; i < placement_->rows.size(); ++i) {
    if (placement_->rows[i].rank >= 0) continue;
    wrong += wrong_poison(bytes, rows + i * bytes);
    const int32_t* const source = outputs_.src_idx;
    if (source != nullptr) wrong += wrong_poison(sizeof *source, source + i);
  }
  return wrong;
}

uint64_t MoeExchange::wrong_info() const {
  const zbcclMoeInfo_t info = handle_.info();
  const auto& counts = placement_->expert_counts;
  uint64_t wrong = info.num_local_experts != static_cast<int32_t>(counts.size()) ||
                   info.allocated_rows != static_cast<int64_t>(placement_->rows.size()) ||
                   (info.overflow != 0) != placement_->overflow;
  if (wrong > 0) return wrong;
  for (size_t i = 0; i < counts.size(); ++i) wrong += info.expert_counts[i] != counts[i];
  return wrong;
}

}  // namespace zbccl::tools
