#include "moe_perf/batch.h"

#include <algorithm>
#include <cstring>
#include <random>

namespace zbccl::tools {
namespace {

using Generator = std::mt19937_64;

bool one_in(Generator& next, uint64_t n) { return next() % n == 0; }

// Different experts, each set as likely as any other.
void choose(Generator& next, int experts, bool skewed, std::span<int64_t> slots) {
  for (size_t k = 0; k < slots.size(); ++k) {
    const auto known = slots.first(k);
    do {
      slots[k] =
          skewed && k == 0 ? 0 : static_cast<int64_t>(next() % static_cast<uint64_t>(experts));
    } while (std::find(known.begin(), known.end(), slots[k]) != known.end());
  }
}

void disturb(Generator& next, std::span<int64_t> slots) {
  const bool nowhere = one_in(next, 32);
  for (int64_t& slot : slots) {
    if (nowhere || one_in(next, 16)) {
      slot = -1;
    } else if (one_in(next, 16)) {
      slot = slots[0];
    }
  }
}

uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ULL;
  x ^= x >> 29;
  x *= 0xa0761d6478bd642fULL;
  x ^= x >> 32;
  return x;
}

// A finite value from random bits: any sign and mantissa, and an exponent of eight neighbouring
// ones around that of 1, moved by `shift`.
struct Float {
  uint32_t sign;
  unsigned mantissa_bits;
  uint32_t bias;
  uint32_t from(uint32_t bits, uint32_t shift) const {
    const uint32_t exponent = bias - 8 + shift + (bits >> mantissa_bits & 7);
    return (bits & sign) | exponent << mantissa_bits | (bits & ((1U << mantissa_bits) - 1));
  }
};

template <typename Bits>
void fill_group(Float format, uint64_t key, uint32_t shift, std::span<Bits> out) {
  constexpr size_t kPerWord = sizeof(uint64_t) / sizeof(Bits);
  uint64_t word = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    if (i % kPerWord == 0) word = mix(key + i / kPerWord);
    out[i] = static_cast<Bits>(format.from(static_cast<Bits>(word), shift));
    word >>= 8 * sizeof(Bits) - 1;  // in two steps: a word may be one element wide
    word >>= 1;
  }
}

template <typename Bits>
void fill_row(Float format, uint64_t key, int64_t hidden, void* out) {
  std::span<Bits> rest(static_cast<Bits*>(out), static_cast<size_t>(hidden));
  for (uint64_t group = 0; !rest.empty(); ++group) {
    const auto values = rest.first(std::min<size_t>(rest.size(), ZBCCL_MOE_SCALE_GROUP));
    const uint64_t kind = mix(key ^ (group << 32 | 1));
    if (kind % 32 == 0) {
      std::fill(values.begin(), values.end(), Bits{0});
    } else {
      fill_group<Bits>(format, kind, static_cast<uint32_t>(kind >> 32 & 7), values);
    }
    rest = rest.subspan(values.size());
  }
}

}  // namespace

Batch::Batch(const MoeShape& shape, Routing routing, uint64_t seed) : shape_(shape), seed_(seed) {
  const auto topk = static_cast<size_t>(shape.topk);
  topk_.resize(static_cast<size_t>(shape.ranks) * static_cast<size_t>(shape.tokens) * topk);
  weights_.resize(topk_.size());
  Generator next(mix(seed));
  for (size_t at = 0; at < topk_.size(); at += topk) {
    const auto slots = std::span(topk_).subspan(at, topk);
    choose(next, shape.experts, routing.skewed, slots);
    if (routing.irregular) disturb(next, slots);
  }
  for (float& weight : weights_) weight = static_cast<float>((next() >> 41) + 1) * 0x1p-23F;
}

void Batch::values(int stream, int64_t row, void* out) const {
  const uint64_t key = mix(mix(seed_ * 2 + 1) ^
                           mix(static_cast<uint64_t>(stream) << 40 | static_cast<uint64_t>(row)));
  switch (shape_.type) {
    case zbcclFloat32: fill_row<uint32_t>({0x80000000U, 23, 127}, key, shape_.hidden, out); return;
    case zbcclFloat16: fill_row<uint16_t>({0x8000U, 10, 15}, key, shape_.hidden, out); return;
    default: fill_row<uint16_t>({0x8000U, 7, 127}, key, shape_.hidden, out); return;
  }
}

}  // namespace zbccl::tools
