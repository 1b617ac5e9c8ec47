// Integers: modulo 2^bits, averages truncated toward zero.
#pragma once

#include "kernels/cuda/numbers_base.h"

namespace zbccl::cuda {

// Accumulators are at least 32 bits wide and unsigned, so that they wrap. Their lower bits are the
// result; minimum and maximum keep them equal to a value of T, extended.
template <typename T>
struct IntegerVec {
  using Bits = std::make_unsigned_t<T>;
  using Acc = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static constexpr int kLanes = 16 / sizeof(T);
  static constexpr bool kHasPoison = false;
  struct Sum {
    Acc lane[kLanes];
  };

  static ZBCCL_BOTH void first(Sum& sum, Pack x) {
    for (int i = 0; i < kLanes; ++i) sum.lane[i] = lane_of(x, i);
  }

  static ZBCCL_BOTH void add(Sum& sum, Pack x, RedOp op) {
    for (int i = 0; i < kLanes; ++i) sum.lane[i] = combine(sum.lane[i], lane_of(x, i), op);
  }

  static ZBCCL_BOTH Pack finish(const Sum& sum, RedOp op, int nranks) {
    Pack x{};
    for (int i = 0; i < kLanes; ++i) {
      Acc v = sum.lane[i];
      if (op == RedOp::kAvg) v = quotient(static_cast<T>(v), static_cast<uint32_t>(nranks));
      set_lane(x, i, static_cast<Bits>(v));
    }
    return x;
  }

 private:
  using Signed = std::make_signed_t<Acc>;
  using Wide = std::conditional_t<std::is_signed_v<T>, Signed, Acc>;

  static ZBCCL_BOTH Acc extend(T v) { return static_cast<Acc>(static_cast<Wide>(v)); }

  static ZBCCL_BOTH Acc lane_of(const Pack& x, int i) {
    if constexpr (sizeof(T) == 8) {
      return uint64_t{x.w[2 * i + 1]} << 32 | x.w[2 * i];
    } else {
      constexpr int kPerWord = 4 / sizeof(T);
      constexpr int kBits = 8 * sizeof(T);
      return extend(static_cast<T>(x.w[i / kPerWord] >> (kBits * (i % kPerWord) % 32)));
    }
  }

  static ZBCCL_BOTH void set_lane(Pack& x, int i, Bits bits) {
    if constexpr (sizeof(T) == 8) {
      x.w[2 * i] = static_cast<uint32_t>(bits);
      x.w[2 * i + 1] = static_cast<uint32_t>(bits >> 32);
    } else {
      constexpr int kPerWord = 4 / sizeof(T);
      constexpr int kBits = 8 * sizeof(T);
      x.w[i / kPerWord] |= uint32_t{bits} << (kBits * (i % kPerWord) % 32);
    }
  }

  static ZBCCL_BOTH Acc combine(Acc a, Acc b, RedOp op) {
    const auto less = static_cast<Wide>(a) < static_cast<Wide>(b);
    switch (op) {
      case RedOp::kProd: return a * b;
      case RedOp::kMin: return less ? a : b;
      case RedOp::kMax: return less ? b : a;
      default: return a + b;
    }
  }

  // By a mathematical integer: of a signed value the magnitude is divided, which is exact for the
  // smallest one and for a divisor beyond the type.
  static ZBCCL_BOTH Acc quotient(T v, uint32_t n) {
    const Acc wide = extend(v);
    if constexpr (std::is_signed_v<T>) {
      if (v < 0) return 0 - (0 - wide) / n;
    }
    return wide / n;
  }
};

}  // namespace zbccl::cuda
