// The operators on vectors of accumulators. Included by kernels-inl.h, once for each instruction
// set.
#pragma once

HWY_BEFORE_NAMESPACE();
namespace zbccl::kernels::ZBCCL_SIMD_TARGET {
namespace {

struct Sum {
  template <class V>
  static HWY_INLINE V apply(V a, V b) {
    return hn::Add(a, b);
  }
};

struct Product {
  template <class V>
  static HWY_INLINE V apply(V a, V b) {
    return hn::Mul(a, b);
  }
};

// Modulo 2^bits of unsigned lanes, for every lane width.
struct IntegerProduct {
  template <class V>
  static HWY_INLINE V apply(V a, V b) {
#if HWY_TARGET == HWY_SCALAR
    using T = hn::TFromD<hn::DFromV<V>>;
    const uint64_t product = uint64_t{hn::GetLane(a)} * hn::GetLane(b);
    return hn::Set(hn::DFromV<V>(), static_cast<T>(product));
#else
    return hn::Mul(a, b);
#endif
  }
};

// Two bytes in each 16-bit lane.
struct ByteProduct {
  template <class V>
  static HWY_INLINE V apply(V a, V b) {
    const hn::DFromV<V> d;
    const V low = hn::And(IntegerProduct::apply(a, b), hn::Set(d, uint16_t{0x00FF}));
    const V high = IntegerProduct::apply(hn::ShiftRight<8>(a), hn::ShiftRight<8>(b));
    return hn::Or(low, hn::ShiftLeft<8>(high));
  }
};

struct IntegerMin {
  template <class V>
  static HWY_INLINE V apply(V a, V b) {
    return hn::Min(a, b);
  }
};
struct IntegerMax {
  template <class V>
  static HWY_INLINE V apply(V a, V b) {
    return hn::Max(a, b);
  }
};

// NaN wins and -0 < +0: where the operands are equal they differ at most in the sign of zero, which
// Or (min) and And (max) of the bits decide.
struct FloatMin {
  template <class V>
  static HWY_INLINE V apply(V a, V b) {
    const V smaller = hn::IfThenElse(hn::Or(hn::Lt(a, b), hn::IsNaN(a)), a, b);
    return hn::IfThenElse(hn::Eq(a, b), hn::Or(a, b), smaller);
  }
};
struct FloatMax {
  template <class V>
  static HWY_INLINE V apply(V a, V b) {
    const V larger = hn::IfThenElse(hn::Or(hn::Lt(b, a), hn::IsNaN(a)), a, b);
    return hn::IfThenElse(hn::Eq(a, b), hn::And(a, b), larger);
  }
};

template <class Op, class V>
HWY_INLINE V combine(V a, V b) {
  return Op::apply(a, b);
}
template <class Op, class V>
HWY_INLINE Pair<V> combine(Pair<V> a, Pair<V> b) {
  return {Op::apply(a.a, b.a), Op::apply(a.b, b.b)};
}

// What happens to the accumulator between the last operand and the rounding.
template <typename T>
struct Nothing {
  explicit Nothing(const Call&) {}
  template <class Acc>
  HWY_INLINE Acc operator()(Acc v) const {
    return v;
  }
};

template <typename T>
struct Divide {
  using D = hn::ScalableTag<T>;
  T divisor;
  explicit Divide(const Call& call) : divisor(static_cast<T>(call.divisor)) {}
  HWY_INLINE hn::Vec<D> operator()(hn::Vec<D> v) const { return hn::Div(v, hn::Set(D(), divisor)); }
  HWY_INLINE Pair<hn::Vec<D>> operator()(Pair<hn::Vec<D>> v) const {
    return {(*this)(v.a), (*this)(v.b)};
  }
};

// The same bits as dividing by a power of two.
template <typename T>
struct Multiply {
  using D = hn::ScalableTag<T>;
  T factor;
  explicit Multiply(const Call& call) : factor(T{1} / static_cast<T>(call.divisor)) {}
  HWY_INLINE hn::Vec<D> operator()(hn::Vec<D> v) const { return hn::Mul(v, hn::Set(D(), factor)); }
  HWY_INLINE Pair<hn::Vec<D>> operator()(Pair<hn::Vec<D>> v) const {
    return {(*this)(v.a), (*this)(v.b)};
  }
};

}  // namespace
}  // namespace zbccl::kernels::ZBCCL_SIMD_TARGET
HWY_AFTER_NAMESPACE();
