#include "support/moe_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "support/floats.h"

namespace zbccl::test {

bool MoeWorld::blocked(int a, int b) const {
  if (masked.empty()) return false;
  return masked[static_cast<size_t>(a)][static_cast<size_t>(b)] ||
         masked[static_cast<size_t>(b)][static_cast<size_t>(a)];
}

std::vector<int32_t> MoeWorld::experts_of(int rank) const {
  std::vector<int32_t> found;
  for (int e = 0; e < experts; ++e) {
    if (rank_of[static_cast<size_t>(e)] == rank) found.push_back(e);
  }
  return found;
}

int MoeWorld::local_of(int rank, int64_t expert) const {
  const auto mine = experts_of(rank);
  const auto at = std::find(mine.begin(), mine.end(), expert);
  return at == mine.end() ? -1 : static_cast<int>(at - mine.begin());
}

namespace {

bool token_comes(const MoeWorld& world, int source, int64_t token, int rank) {
  for (int k = 0; k < world.topk; ++k) {
    if (world.local_of(rank, world.expert_of(source, token, k)) >= 0) return true;
  }
  return false;
}

// The rows of one expert, in order.
std::vector<MoeRow> rows_of_expert(const MoeWorld& world, int rank, int expert, int local) {
  std::vector<MoeRow> rows;
  for (int s = 0; s < world.ranks; ++s) {
    if (world.blocked(s, rank)) continue;
    for (int64_t t = 0; t < world.tokens(s); ++t) {
      for (int k = 0; k < world.topk; ++k) {
        if (world.expert_of(s, t, k) == expert) rows.push_back({s, t, k, local});
      }
    }
  }
  return rows;
}

void cut(MoeRows& result, int64_t capacity) {
  result.needed_capacity = static_cast<int64_t>(result.rows.size());
  result.num_rows = result.needed_capacity;
  if (capacity == 0) return;
  result.overflow = result.needed_capacity > capacity;
  result.num_rows = std::min(result.num_rows, capacity);
  result.rows.resize(static_cast<size_t>(capacity));
}

}  // namespace

MoeRows reference_rows(const MoeWorld& world, int rank) {
  MoeRows result;
  const auto mine = world.experts_of(rank);
  const int64_t capacity = world.capacity[static_cast<size_t>(rank)];
  result.expert_counts.assign(mine.size(), 0);
  if (world.layout == zbcclMoeRankMajor) {
    for (int s = 0; s < world.ranks; ++s) {
      if (world.blocked(s, rank)) continue;
      for (int64_t t = 0; t < world.tokens(s); ++t) {
        if (!token_comes(world, s, t, rank)) continue;
        result.rows.push_back({s, t, -1, -1});
        for (int k = 0; k < world.topk; ++k) {
          const int local = world.local_of(rank, world.expert_of(s, t, k));
          if (local >= 0) ++result.expert_counts[static_cast<size_t>(local)];
        }
      }
    }
    cut(result, capacity);
    return result;
  }
  const bool masked = world.layout == zbcclMoeExpertMasked;
  for (size_t e = 0; e < mine.size(); ++e) {
    auto rows = rows_of_expert(world, rank, mine[e], static_cast<int>(e));
    if (masked) {
      result.needed_capacity = std::max(result.needed_capacity, static_cast<int64_t>(rows.size()));
      rows.resize(std::min(rows.size(), static_cast<size_t>(capacity)));
      result.num_rows += static_cast<int64_t>(rows.size());
      rows.resize(static_cast<size_t>(capacity));
    } else {
      const auto alignment = static_cast<size_t>(world.alignment);
      rows.resize((rows.size() + alignment - 1) / alignment * alignment);
    }
    result.rows.insert(result.rows.end(), rows.begin(), rows.end());
  }
  if (masked) {
    result.overflow = result.needed_capacity > capacity;
  } else {
    cut(result, capacity);
  }
  for (const MoeRow& row : result.rows) {
    if (row.source >= 0) ++result.expert_counts[static_cast<size_t>(row.expert)];
  }
  return result;
}

float element_value(const void* data, size_t i, int type) {
  if (type == zbcclFloat32) return static_cast<const float*>(data)[i];
  return decode(static_cast<const uint16_t*>(data)[i],
                format_of(static_cast<zbcclDataType_t>(type)));
}

void store_element(void* data, size_t i, int type, float value) {
  if (type == zbcclFloat32) {
    constexpr uint32_t kNan = 0x7FC00000U;
    if (std::isnan(value)) std::memcpy(&value, &kNan, sizeof value);
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<uint16_t*>(data)[i] =
        static_cast<uint16_t>(encode(value, format_of(static_cast<zbcclDataType_t>(type))));
  }
}

namespace {

uint32_t bits_of(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The smallest power of two that is not less.
float raised(float scale) {
  if (!std::isfinite(scale)) return scale;
  int exponent = 0;
  const float mantissa = std::frexp(scale, &exponent);
  return std::ldexp(1.0F, mantissa == 0.5F ? exponent - 1 : exponent);
}

uint8_t e4m3_code(float value) {
  const float limited = std::isnan(value) ? value : std::clamp(value, -448.0F, 448.0F);
  return static_cast<uint8_t>(encode(limited, format_of(zbcclFloat8e4m3)));
}

MoeCodes int8_codes(const void* row, int64_t hidden, int type) {
  float amax = 1e-10F;
  bool finite = true;
  for (int64_t i = 0; i < hidden; ++i) {
    const float value = std::fabs(element_value(row, static_cast<size_t>(i), type));
    finite = finite && std::isfinite(value);
    if (value > amax) amax = value;
  }
  MoeCodes result;
  if (!finite) {
    result.scales = {0x7FC00000U};
    result.codes.assign(static_cast<size_t>(hidden), 0);
    return result;
  }
  const float scale = amax / 127.0F;
  const float inverse = 1.0F / scale;
  result.scales = {bits_of(scale)};
  for (int64_t i = 0; i < hidden; ++i) {
    const float scaled = element_value(row, static_cast<size_t>(i), type) * inverse;
    result.codes.push_back(static_cast<uint8_t>(static_cast<int>(std::nearbyint(scaled))));
  }
  return result;
}

}  // namespace

MoeCodes reference_codes(const void* row, int64_t hidden, int type, int quant) {
  if (quant == zbcclMoeQuantInt8) return int8_codes(row, hidden, type);
  MoeCodes result;
  for (int64_t first = 0; first < hidden; first += 128) {
    const int64_t end = std::min(first + 128, hidden);
    float amax = 1e-4F;
    for (int64_t i = first; i < end; ++i) {
      const float value = std::fabs(element_value(row, static_cast<size_t>(i), type));
      if (value > amax) amax = value;
    }
    float scale = amax / 448.0F;
    if (quant != zbcclMoeQuantFp8) scale = raised(scale);
    const float inverse = 1.0F / scale;
    for (int64_t i = first; i < end; ++i) {
      result.codes.push_back(e4m3_code(element_value(row, static_cast<size_t>(i), type) * inverse));
    }
    const auto group = static_cast<uint32_t>(first / 128);
    if (quant != zbcclMoeQuantFp8Ue8m0) {
      result.scales.push_back(bits_of(scale));
    } else {
      if (group % 4 == 0) result.scales.push_back(0);
      result.scales.back() |= bits_of(scale) >> 23 << (8 * (group % 4));
    }
  }
  return result;
}

void reference_sum(const std::vector<MoeTerm>& terms, bool weighted, bool by_rank,
                   const void* bias0, const void* bias1, int64_t hidden, int type, void* out) {
  std::vector<int> ranks;
  for (const MoeTerm& term : terms) ranks.push_back(term.rank);
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  for (int64_t i = 0; i < hidden; ++i) {
    const auto at = static_cast<size_t>(i);
    const auto product = [&](const MoeTerm& term) {
      const float value = element_value(term.row, at, type);
      return weighted ? value * term.weight : value;
    };
    float sum = 0.0F;
    if (bias0 != nullptr) {
      sum = element_value(bias0, at, type);
      if (bias1 != nullptr) sum = sum + element_value(bias1, at, type);
    } else if (bias1 != nullptr) {
      sum = element_value(bias1, at, type);
    }
    if (!by_rank) {
      for (const MoeTerm& term : terms) {
        const float next = product(term);
        sum = sum + next;
      }
    } else {
      for (const int rank : ranks) {
        float partial = 0.0F;
        for (const MoeTerm& term : terms) {
          if (term.rank != rank) continue;
          const float next = product(term);
          partial = partial + next;
        }
        alignas(float) char rounded[4];
        store_element(rounded, 0, type, partial);
        sum = sum + element_value(rounded, 0, type);
      }
    }
    store_element(out, at, type, sum);
  }
}

}  // namespace zbccl::test
