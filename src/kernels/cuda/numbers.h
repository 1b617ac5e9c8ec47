// The arithmetic of reductions, bit for bit as in docs/numerics.md, on vectors of 16 bytes:
//
//   Vec<T>::Sum sum;
//   Vec<T>::first(sum, x[0]);
//   for k in 1 .. n - 1: Vec<T>::add(sum, x[k], op);
//   y = Vec<T>::finish(sum, op, n);
//
// For n >= 2 operands, in rank order; of one operand the result is the operand itself. Registers
// only, no memory; `op` is a constant in hot kernels, where everything else folds away.
#pragma once

#include "kernels/cuda/numbers_base.h"
#include "kernels/cuda/numbers_float.h"
#include "kernels/cuda/numbers_fp8.h"
#include "kernels/cuda/numbers_integer.h"

namespace zbccl::cuda {

template <class Format>
struct FloatVec {
  using Acc = typename Format::Acc;
  using Bits = typename Format::Bits;  // one element in memory
  static constexpr int kLanes = Format::kLanes;
  struct Sum {
    Acc lane[kLanes];
  };

  static ZBCCL_BOTH void first(Sum& sum, Pack x) { Format::unpack(sum.lane, x); }

  static ZBCCL_BOTH void add(Sum& sum, Pack x, RedOp op) {
    Acc lane[kLanes];
    Format::unpack(lane, x);
    for (int i = 0; i < kLanes; ++i) sum.lane[i] = combine(sum.lane[i], lane[i], op);
  }

  static ZBCCL_BOTH Pack finish(const Sum& sum, RedOp op, int nranks) {
    if (op != RedOp::kAvg) return Format::pack(sum.lane);
    Acc lane[kLanes];
    for (int i = 0; i < kLanes; ++i) lane[i] = divide_by_count(sum.lane[i], nranks);
    return Format::pack(lane);
  }

  // One element; from_float rounds as finish() does.
  static ZBCCL_BOTH Acc to_float(Bits code) { return Format::widen(code); }
  static ZBCCL_BOTH Bits from_float(Acc v) { return Format::narrow(v); }

 private:
  static ZBCCL_BOTH Acc combine(Acc a, Acc b, RedOp op) {
    switch (op) {
      case RedOp::kProd: return multiply(a, b);
      case RedOp::kMin: return minimum(a, b);
      case RedOp::kMax: return maximum(a, b);
      default: return cuda::add(a, b);
    }
  }
};

// A word of ones is a NaN, or several, in these formats, and no result of finish(). So it can mark
// memory that nobody has written yet, if inputs never contain it.
template <class Format>
struct PoisonableVec : FloatVec<Format> {
  static constexpr bool kHasPoison = true;

  static ZBCCL_BOTH bool poisoned(Pack x) {
    return x.w[0] == kPoisonWord || x.w[1] == kPoisonWord || x.w[2] == kPoisonWord ||
           x.w[3] == kPoisonWord;
  }
  // Words of poison become another NaN in each of their elements.
  static ZBCCL_BOTH Pack without_poison(Pack x) {
    for (uint32_t& word : x.w) {
      if constexpr (Format::kNanBelowOnes) {
        word = min_u32(word, kPoisonWord - 1);
      } else {
        if (word == kPoisonWord) word = kPoisonWord >> 1;
      }
    }
    return x;
  }
};

template <class Format>
struct PlainVec : FloatVec<Format> {
  static constexpr bool kHasPoison = false;
};

template <DataType kType>
struct Vec;

template <>
struct Vec<DataType::kF32> : PoisonableVec<F32> {};
template <>
struct Vec<DataType::kF64> : PlainVec<F64> {};
template <>
struct Vec<DataType::kF16> : PoisonableVec<F16> {};
template <>
struct Vec<DataType::kBf16> : PoisonableVec<Bf16> {};
template <>
struct Vec<DataType::kE4m3> : PoisonableVec<E4m3> {};
template <>
struct Vec<DataType::kE5m2> : PoisonableVec<E5m2> {};
template <>
struct Vec<DataType::kI8> : IntegerVec<int8_t> {};
template <>
struct Vec<DataType::kU8> : IntegerVec<uint8_t> {};
template <>
struct Vec<DataType::kI16> : IntegerVec<int16_t> {};
template <>
struct Vec<DataType::kU16> : IntegerVec<uint16_t> {};
template <>
struct Vec<DataType::kI32> : IntegerVec<int32_t> {};
template <>
struct Vec<DataType::kU32> : IntegerVec<uint32_t> {};
template <>
struct Vec<DataType::kI64> : IntegerVec<int64_t> {};
template <>
struct Vec<DataType::kU64> : IntegerVec<uint64_t> {};

}  // namespace zbccl::cuda
