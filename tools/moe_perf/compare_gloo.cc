// Dispatch and combine over gloo, as a user of gloo writes them: counts by alltoall; rows, chosen
// experts and weights by alltoallv, a row once for each rank that needs it; results back by
// alltoallv, and added up here. Memory is kept between calls.

#include <gloo/alltoall.h>
#include <gloo/alltoallv.h>
#include <gloo/context.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "measure/gloo_context.h"
#include "moe_perf/compare.h"

namespace zbccl::tools {
namespace {

float value_of(float v) { return v; }
float value_of(uint16_t bf16) { return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16); }
void round_to(float v, float& out) { out = v; }
void round_to(float v, uint16_t& bf16) {
  const auto bits = std::bit_cast<uint32_t>(v);
  bf16 = static_cast<uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1)) >> 16);
}

// [rows, hidden] of f32 or bf16, added up in f32.
template <typename T>
class Adder {
 public:
  explicit Adder(size_t hidden) : sum_(hidden) {}
  void clear() { std::fill(sum_.begin(), sum_.end(), 0.0F); }
  void add(const void* rows, int64_t row, float weight) {
    const T* values = static_cast<const T*>(rows) + static_cast<size_t>(row) * sum_.size();
    float* sum = sum_.data();
    for (size_t i = 0; i < sum_.size(); ++i) sum[i] += weight * value_of(values[i]);
  }
  void add(const void* rows, int64_t row) {
    const T* values = static_cast<const T*>(rows) + static_cast<size_t>(row) * sum_.size();
    float* sum = sum_.data();
    for (size_t i = 0; i < sum_.size(); ++i) sum[i] += value_of(values[i]);
  }
  void store(void* rows, int64_t row) const {
    T* values = static_cast<T*>(rows) + static_cast<size_t>(row) * sum_.size();
    const float* sum = sum_.data();
    for (size_t i = 0; i < sum_.size(); ++i) round_to(sum[i], values[i]);
  }

 private:
  std::vector<float> sum_;
};

class GlooMoe : public MoeComparison {
 public:
  explicit GlooMoe(const CompareGroup& group) : rank_(group.rank), context_(join_gloo(group)) {}

  void prepare(const MoeShape& shape, const MoeInputs& inputs, bool cached) override {
    shape_ = shape;
    shape_.quant = zbcclMoeQuantNone;
    inputs_ = inputs;
    cached_ = false;
    dispatch();
    cached_ = cached;
  }

  void dispatch() override {
    if (!cached_) {
      choose_ranks();
      exchange_counts();
    }
    pack_rows();
    exchange(send_rows_, sent_, recv_rows_, received_, row_bytes(shape_));
    if (!cached_) exchange_slots();
    if (shape_.layout == zbcclMoeRankMajor) return;
    if (!cached_) place_rows();
    spread_rows();
  }

  void combine() override {
    shape_.type == zbcclFloat32 ? combine_as<float>() : combine_as<uint16_t>();
  }

  Dispatched outputs() const override {
    Dispatched outputs;
    if (shape_.layout != zbcclMoeRankMajor) {
      outputs.rows = spread_.data();
      return outputs;
    }
    outputs.rows = recv_rows_.data();
    if (!cached_) outputs.topk_idx = recv_idx_.data();
    if (!cached_) outputs.topk_weights = recv_weights_.data();
    return outputs;
  }

 private:
  using Counts = std::vector<int64_t>;

  static int64_t total(const Counts& counts) {
    return std::accumulate(counts.begin(), counts.end(), int64_t{0});
  }
  size_t topk() const { return static_cast<size_t>(shape_.topk); }

  // Which tokens go to each rank, once each.
  void choose_ranks() {
    to_rank_.assign(static_cast<size_t>(shape_.ranks), {});
    for (int64_t token = 0; token < shape_.tokens; ++token) {
      const int64_t* slots = inputs_.topk + token * shape_.topk;
      for (int k = 0; k < shape_.topk; ++k) {
        if (slots[k] < 0) continue;
        auto& tokens = to_rank_[static_cast<size_t>(owner_of(shape_, static_cast<int>(slots[k])))];
        if (tokens.empty() || tokens.back() != token) tokens.push_back(token);
      }
    }
    sent_.clear();
    for (const auto& tokens : to_rank_) sent_.push_back(static_cast<int64_t>(tokens.size()));
  }

  void exchange_counts() {
    received_.resize(sent_.size());
    gloo::AlltoallOptions options(context_);
    options.setInput(sent_.data(), sent_.size());
    options.setOutput(received_.data(), received_.size());
    gloo::alltoall(options);
  }

  void pack_rows() {
    const size_t bytes = row_bytes(shape_);
    send_rows_.resize(static_cast<size_t>(total(sent_)) * bytes);
    std::byte* to = send_rows_.data();
    for (const auto& tokens : to_rank_) {
      for (const int64_t token : tokens) {
        std::memcpy(
            to, static_cast<const std::byte*>(inputs_.tokens) + static_cast<size_t>(token) * bytes,
            bytes);
        to += bytes;
      }
    }
  }

  // The chosen experts of each row as the receiver counts them, and their weights.
  void exchange_slots() {
    const size_t rows = static_cast<size_t>(total(sent_));
    send_idx_.resize(rows * topk());
    send_weights_.resize(rows * topk());
    size_t at = 0;
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      const int first = first_expert(shape_, rank);
      const int end = first_expert(shape_, rank + 1);
      for (const int64_t token : to_rank_[static_cast<size_t>(rank)]) {
        for (int k = 0; k < shape_.topk; ++k, ++at) {
          const int64_t expert = inputs_.topk[token * shape_.topk + k];
          const bool there = expert >= first && expert < end;
          send_idx_[at] = there ? expert - first : -1;
          send_weights_[at] = there ? inputs_.weights[token * shape_.topk + k] : 0;
        }
      }
    }
    exchange(send_idx_, sent_, recv_idx_, received_, topk() * sizeof(int64_t));
    exchange(send_weights_, sent_, recv_weights_, received_, topk() * sizeof(float));
  }

  // Rows of `bytes` each; `to` gets the size that it needs.
  template <typename T>
  void exchange(std::vector<T>& from, const Counts& sent, std::vector<T>& to,
                const Counts& received, size_t bytes) {
    to.resize(static_cast<size_t>(total(received)) * bytes / sizeof(T));
    exchange(from.data(), sent, to.data(), received, bytes);
  }
  void exchange(const void* from, const Counts& sent, void* to, const Counts& received,
                size_t bytes) {
    const auto in_bytes = [bytes](Counts counts) {
      for (int64_t& count : counts) count *= static_cast<int64_t>(bytes);
      return counts;
    };
    gloo::AlltoallvOptions options(context_);
    options.setInput(static_cast<char*>(const_cast<void*>(from)), in_bytes(sent));
    options.setOutput(static_cast<char*>(to), in_bytes(received));
    gloo::alltoallv(options);
  }

  // Expert layouts: where each slot of the rows that came belongs; -1 for slots of other ranks and
  // what exceeds the capacity.
  void place_rows() {
    const int experts = first_expert(shape_, rank_ + 1) - first_expert(shape_, rank_);
    Counts next(static_cast<size_t>(experts));
    for (const int64_t expert : recv_idx_) {
      if (expert >= 0) ++next[static_cast<size_t>(expert)];
    }
    const int64_t alignment = shape_.alignment;
    Counts end(next.size());
    spread_rows_ = 0;
    for (size_t e = 0; e < next.size(); ++e) {
      const int64_t rows = shape_.layout == zbcclMoeExpertMasked
                               ? capacity_of(shape_)
                               : (next[e] + alignment - 1) / alignment * alignment;
      next[e] = spread_rows_;
      spread_rows_ += rows;
      end[e] = spread_rows_;
    }
    places_.assign(recv_idx_.size(), -1);
    for (size_t i = 0; i < places_.size(); ++i) {
      if (recv_idx_[i] < 0) continue;
      const auto expert = static_cast<size_t>(recv_idx_[i]);
      if (next[expert] < end[expert]) places_[i] = next[expert]++;
    }
  }

  void spread_rows() {
    const size_t bytes = row_bytes(shape_);
    spread_.resize(static_cast<size_t>(spread_rows_) * bytes);
    for (size_t i = 0; i < places_.size(); ++i) {
      if (places_[i] < 0) continue;
      std::memcpy(spread_.data() + static_cast<size_t>(places_[i]) * bytes,
                  recv_rows_.data() + i / topk() * bytes, bytes);
    }
  }

  template <typename T>
  void combine_as() {
    const size_t bytes = plain_row_bytes(shape_);
    Adder<T> adder(static_cast<size_t>(shape_.hidden));
    const void* results = inputs_.results;
    if (shape_.layout != zbcclMoeRankMajor) {
      reduced_.resize(static_cast<size_t>(total(received_)) * bytes);
      for (int64_t row = 0; row < total(received_); ++row) reduce_slots(adder, row);
      results = reduced_.data();
    }
    returned_.resize(static_cast<size_t>(total(sent_)) * bytes);
    exchange(results, received_, returned_.data(), sent_, bytes);
    Counts next(to_rank_.size());  // row of each rank's part that is to be added next
    Counts begin(to_rank_.size());
    std::exclusive_scan(sent_.begin(), sent_.end(), begin.begin(), int64_t{0});
    for (int64_t token = 0; token < shape_.tokens; ++token) {
      adder.clear();
      for (size_t r = 0; r < to_rank_.size(); ++r) {
        const auto& tokens = to_rank_[r];
        if (next[r] == sent_[r] || tokens[static_cast<size_t>(next[r])] != token) continue;
        adder.add(returned_.data(), begin[r] + next[r]++);
      }
      adder.store(inputs_.combined, token);
    }
  }

  template <typename T>
  void reduce_slots(Adder<T>& adder, int64_t row) {
    adder.clear();
    for (size_t i = static_cast<size_t>(row) * topk(); i < static_cast<size_t>(row + 1) * topk();
         ++i) {
      if (places_[i] >= 0) adder.add(inputs_.results, places_[i], recv_weights_[i]);
    }
    adder.store(reduced_.data(), row);
  }

  int rank_;
  std::shared_ptr<gloo::Context> context_;
  MoeShape shape_;
  MoeInputs inputs_;
  bool cached_ = false;
  std::vector<std::vector<int64_t>> to_rank_;  // tokens that go to each rank
  Counts sent_;                                // rows to each rank
  Counts received_;                            // and from each
  std::vector<std::byte> send_rows_, recv_rows_;
  std::vector<int64_t> send_idx_, recv_idx_;
  std::vector<float> send_weights_, recv_weights_;
  std::vector<int64_t> places_;  // [rows that came, topk]
  int64_t spread_rows_ = 0;
  std::vector<std::byte> spread_;  // of an expert layout
  std::vector<std::byte> reduced_, returned_;
};

}  // namespace
}  // namespace zbccl::tools

extern "C" __attribute__((visibility("default"))) zbccl::tools::MoeComparison*
zbccl_open_moe_comparison(const zbccl::tools::CompareGroup& group) {
  return new zbccl::tools::GlooMoe(group);
}
