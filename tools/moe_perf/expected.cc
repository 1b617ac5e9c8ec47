#include "moe_perf/expected.h"

#include <cstring>
#include <span>
#include <vector>

#include "moe_perf/numbers.h"

namespace zbccl::tools {
namespace {

uint64_t differing(const void* a, const void* b, size_t count, size_t element) {
  if (std::memcmp(a, b, count * element) == 0) return 0;
  const auto* first = static_cast<const std::byte*>(a);
  const auto* second = static_cast<const std::byte*>(b);
  uint64_t wrong = 0;
  for (size_t i = 0; i < count * element; i += element) {
    wrong += std::memcmp(first + i, second + i, element) != 0;
  }
  return wrong;
}

// A row as it arrives.
class ArrivingRow {
 public:
  explicit ArrivingRow(const Batch& batch)
      : batch_(batch),
        plain_(plain_row_bytes(batch.shape())),
        values_(static_cast<size_t>(batch.shape().hidden)),
        codes_(values_.size()),
        scales_(static_cast<size_t>(scales_of(batch.shape()))) {}

  uint64_t wrong(const RowSource& source, const std::byte* row, const uint32_t* scales) {
    const MoeShape& shape = batch_.shape();
    batch_.token(source.rank, source.token, plain_.data());
    if (shape.quant == zbcclMoeQuantNone) {
      return differing(row, plain_.data(), values_.size(), zbcclTypeSize(shape.type));
    }
    widen(shape.type, plain_.data(), values_);
    quantize(shape.quant, values_, codes_.data(), scales_.data());
    return differing(row, codes_.data(), codes_.size(), 1) +
           differing(scales, scales_.data(), scales_.size(), sizeof(uint32_t));
  }

 private:
  const Batch& batch_;
  std::vector<std::byte> plain_;
  std::vector<float> values_;
  std::vector<uint8_t> codes_;
  std::vector<uint32_t> scales_;
};

uint64_t wrong_slots(const Batch& batch, const RowSource& source, int rank, const int64_t* topk_idx,
                     const float* topk_weights) {
  const MoeShape& shape = batch.shape();
  const int first = first_expert(shape, rank);
  const int end = first_expert(shape, rank + 1);
  uint64_t wrong = 0;
  for (int k = 0; k < shape.topk; ++k) {
    const auto at = static_cast<size_t>(source.token * shape.topk + k);
    const int64_t expert = batch.topk(source.rank)[at];
    const bool here = expert >= first && expert < end;
    const float weight = here ? batch.weights(source.rank)[at] : 0;
    wrong += topk_idx != nullptr && topk_idx[k] != (here ? expert - first : -1);
    wrong += topk_weights != nullptr && topk_weights[k] != weight;
  }
  return wrong;
}

// Sums rows of results, each operation rounded to f32.
class Sum {
 public:
  explicit Sum(const Batch& batch)
      : batch_(batch),
        bytes_(plain_row_bytes(batch.shape())),
        row_(static_cast<size_t>(batch.shape().hidden)),
        sum_(row_.size()) {}

  void clear() { sum_.assign(sum_.size(), 0.0F); }
  void add(int rank, int64_t row, float weight) {
    batch_.result(rank, row, bytes_.data());
    widen(batch_.shape().type, bytes_.data(), row_);
    for (size_t i = 0; i < sum_.size(); ++i) {
      const float product = weight * row_[i];
      sum_[i] += product;
    }
  }
  // Rounded to the type.
  const std::vector<std::byte>& rounded() {
    narrow(batch_.shape().type, sum_, bytes_.data());
    return bytes_;
  }
  void add_rounded(Sum& part) {
    widen(batch_.shape().type, part.rounded().data(), row_);
    for (size_t i = 0; i < sum_.size(); ++i) sum_[i] += row_[i];
  }

 private:
  const Batch& batch_;
  std::vector<std::byte> bytes_;
  std::vector<float> row_;
  std::vector<float> sum_;
};

}  // namespace

uint64_t wrong_dispatched(const Batch& batch, const Placement& placement, int rank,
                          const Dispatched& outputs) {
  const MoeShape& shape = batch.shape();
  ArrivingRow expected(batch);
  uint64_t wrong = 0;
  for (size_t i = 0; i < placement.rows.size(); ++i) {
    const RowSource& source = placement.rows[i];
    const bool filled = source.rank >= 0;
    // What is left of a capacity is left as it was.
    if (!filled && shape.layout == zbcclMoeExpertMasked) continue;
    const auto token = static_cast<int32_t>(filled ? source.token : -1);
    wrong += outputs.src_idx != nullptr && outputs.src_idx[i] != token;
    const auto slot = static_cast<size_t>(source.token * shape.topk + source.slot);
    const float weight = filled ? batch.weights(source.rank)[slot] : 0;
    wrong += outputs.row_weights != nullptr && outputs.row_weights[i] != weight;
    if (!filled) continue;
    const uint32_t* scales = outputs.scales == nullptr
                                 ? nullptr
                                 : outputs.scales + i * static_cast<size_t>(scales_of(shape));
    wrong += expected.wrong(
        source, static_cast<const std::byte*>(outputs.rows) + i * row_bytes(shape), scales);
    const size_t slots = i * static_cast<size_t>(shape.topk);
    wrong += wrong_slots(batch, source, rank,
                         outputs.topk_idx != nullptr ? outputs.topk_idx + slots : nullptr,
                         outputs.topk_weights != nullptr ? outputs.topk_weights + slots : nullptr);
  }
  return wrong;
}

uint64_t wrong_combined(const Batch& batch, int rank, bool pre_reduced, const void* out) {
  const MoeShape& shape = batch.shape();
  const std::vector<int64_t> places = places_of_tokens(batch, rank);
  const bool by_rank = shape.layout == zbcclMoeRankMajor;
  Sum sum(batch);
  Sum part(batch);
  uint64_t wrong = 0;
  for (int64_t token = 0; token < shape.tokens; ++token) {
    const int columns = by_rank ? shape.ranks : shape.topk;
    const auto place = std::span(places).subspan(static_cast<size_t>(token * columns),
                                                 static_cast<size_t>(columns));
    const size_t slots = static_cast<size_t>(token) * static_cast<size_t>(shape.topk);
    const auto topk = batch.topk(rank).subspan(slots, static_cast<size_t>(shape.topk));
    const auto weights = batch.weights(rank).subspan(slots, topk.size());
    // Slots of the experts on `peer`, or of all.
    const auto add_slots = [&](Sum& to, int peer) {
      bool any = false;
      for (size_t k = 0; k < topk.size(); ++k) {
        if (place[k] < 0) continue;
        const int owner = owner_of(shape, static_cast<int>(topk[k]));
        if (peer >= 0 && owner != peer) continue;
        to.add(owner, place[k], weights[k]);
        any = true;
      }
      return any;
    };
    sum.clear();
    if (!by_rank && !pre_reduced) add_slots(sum, -1);
    for (int peer = 0; peer < shape.ranks; ++peer) {
      if (by_rank) {
        if (place[static_cast<size_t>(peer)] >= 0) {
          sum.add(peer, place[static_cast<size_t>(peer)], 1);
        }
      } else if (pre_reduced) {
        part.clear();
        if (add_slots(part, peer)) sum.add_rounded(part);
      }
    }
    const auto* bytes = static_cast<const std::byte*>(out);
    const size_t row = plain_row_bytes(shape);
    wrong += differing(bytes + static_cast<size_t>(token) * row, sum.rounded().data(),
                       static_cast<size_t>(shape.hidden), zbcclTypeSize(shape.type));
  }
  return wrong;
}

}  // namespace zbccl::tools
