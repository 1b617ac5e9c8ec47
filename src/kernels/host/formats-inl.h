// How elements of each type become vectors of accumulators and back. Included by kernels-inl.h,
// once for each instruction set.
//
// A format handles kStepBytes bytes of memory at a time: load() gives an accumulator (one vector,
// or a Pair), pack() rounds an accumulator once, store() writes it. Conversions follow
// docs/numerics.md: to nearest even, denormals kept, one canonical NaN.
#pragma once

HWY_BEFORE_NAMESPACE();
namespace zbccl::kernels::ZBCCL_SIMD_TARGET {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using DF32 = hn::ScalableTag<float>;
using DU32 = hn::ScalableTag<uint32_t>;
using DI32 = hn::ScalableTag<int32_t>;
using VF32 = hn::Vec<DF32>;
using VU32 = hn::Vec<DU32>;

template <class V>
struct Pair {
  V a, b;
};

template <class D>
HWY_INLINE hn::Vec<D> load_bytes(D d, const uint8_t* p) {
  return hn::LoadU(d, reinterpret_cast<const hn::TFromD<D>*>(p));
}
template <class D>
HWY_INLINE void store_bytes(D d, hn::Vec<D> v, uint8_t* p) {
  hn::StoreU(v, d, reinterpret_cast<hn::TFromD<D>*>(p));
}

HWY_INLINE VU32 bits_of(VF32 v) { return hn::BitCast(DU32(), v); }
HWY_INLINE VF32 float_of(VU32 v) { return hn::BitCast(DF32(), v); }
HWY_INLINE VU32 splat(uint32_t bits) { return hn::Set(DU32(), bits); }

// Unsigned 32-bit lanes below 2^31 compare as signed ones.
HWY_INLINE hn::Mask<DU32> less(VU32 a, VU32 b) {
  const DI32 d;
  return hn::RebindMask(DU32(), hn::Lt(hn::BitCast(d, a), hn::BitCast(d, b)));
}

// f32 and f64.
template <typename T, typename Bits, Bits kNan>
struct Native {
  using D = hn::ScalableTag<T>;
  using Acc = hn::Vec<D>;
  using Packed = Acc;
  using Lane = T;
  static constexpr size_t kElementBytes = sizeof(T);
  static constexpr size_t kStepBytes = hn::MaxLanes(D()) * sizeof(T);

  static HWY_INLINE Acc load(const uint8_t* p) { return load_bytes(D(), p); }
  static HWY_INLINE Packed pack(Acc v) {
    const hn::Vec<D> nan = hn::BitCast(D(), hn::Set(hn::RebindToUnsigned<D>(), kNan));
    return hn::IfThenElse(hn::IsNaN(v), nan, v);
  }
  static HWY_INLINE void store(Packed v, uint8_t* p) { store_bytes(D(), v, p); }
};
using F32 = Native<float, uint32_t, 0x7FC00000U>;
using F64 = Native<double, uint64_t, 0x7FF8000000000000U>;

// Each 32-bit lane holds two elements: no shuffles, the upper is an f32 once the lower is masked.
struct Bf16 {
  using Acc = Pair<VF32>;
  using Packed = VU32;
  using Lane = float;
  static constexpr size_t kElementBytes = 2;
  static constexpr size_t kStepBytes = hn::MaxLanes(DU32()) * 4;

  static HWY_INLINE Acc load(const uint8_t* p) {
    const VU32 both = load_bytes(DU32(), p);
    return {float_of(hn::ShiftLeft<16>(both)), float_of(hn::And(both, splat(0xFFFF0000U)))};
  }
  // Rounds the upper 16 bits; the lower are left undefined.
  static HWY_INLINE VU32 round(VF32 v) {
    const VU32 bits = bits_of(v);
    const VU32 even = hn::And(hn::ShiftRight<16>(bits), splat(1));
    const VU32 rounded = hn::Add(hn::Add(bits, splat(0x7FFF)), even);
    return hn::IfThenElse(hn::RebindMask(DU32(), hn::IsNaN(v)), splat(0x7FC00000U), rounded);
  }
  static HWY_INLINE Packed pack(Acc v) {
    return hn::Or(hn::ShiftRight<16>(round(v.a)), hn::And(round(v.b), splat(0xFFFF0000U)));
  }
  static HWY_INLINE void store(Packed v, uint8_t* p) { store_bytes(DU32(), v, p); }
};

// A small float's bits, one in each lane, as f32; exact.
template <int kMantissa, int kBias, bool kHasInf>
HWY_INLINE VF32 widen(VU32 code, int sign_bit) {
  constexpr uint32_t kOne = 1U << 23;
  constexpr int kShift = 23 - kMantissa;
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - kBias) << 23;
  const VU32 sign = hn::And(code, splat(1U << sign_bit));
  const VU32 magnitude = hn::ShiftLeft<kShift>(hn::Xor(code, sign));
  const VU32 normal = hn::Add(magnitude, splat(kRebias));
  // With the smallest normal's exponent in front, subtracting that normal leaves the denormal; no
  // operand is an f32 denormal.
  const VF32 smallest = float_of(splat(kRebias + kOne));
  const VU32 denormal =
      bits_of(hn::Sub(float_of(hn::Add(magnitude, splat(kRebias + kOne))), smallest));
  VU32 bits = hn::IfThenElse(less(magnitude, splat(kOne)), denormal, normal);
  if (kHasInf) {  // the largest exponent is Inf or NaN
    constexpr uint32_t kTop = static_cast<uint32_t>(2 * kBias + 1) << 23;
    bits = hn::IfThenElse(less(magnitude, splat(kTop)), bits, hn::Or(bits, splat(0x7F800000U)));
  } else {  // all ones is NaN
    constexpr uint32_t kAllOnes = static_cast<uint32_t>(2 * kBias + 2) << 23;
    constexpr uint32_t kNanBits = kAllOnes - (1U << kShift);
    bits = hn::IfThenElse(less(magnitude, splat(kNanBits)), bits, splat(0x7FC00000U));
  }
  const VU32 top = sign_bit == 15 ? hn::ShiftLeft<16>(sign) : hn::ShiftLeft<24>(sign);
  return float_of(hn::Or(bits, top));
}

// f32 to a small float's bits, to nearest even. Whatever is beyond `largest` becomes it: the code
// of Inf, or of the largest finite where there is none.
template <int kMantissa, int kBias>
HWY_INLINE VU32 narrow(VF32 v, uint32_t largest, uint32_t nan, int sign_bit) {
  constexpr int kShift = 23 - kMantissa;
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - kBias) << kMantissa;
  constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(128 - kBias) << 23;
  const VU32 bits = bits_of(v);
  const VU32 magnitude = hn::And(bits, splat(0x7FFFFFFFU));
  const VU32 sign = hn::Xor(bits, magnitude);
  const VU32 even = hn::And(hn::ShiftRight<kShift>(magnitude), splat(1));
  const VU32 half = splat((1U << (kShift - 1)) - 1);
  const VU32 normal =
      hn::Sub(hn::ShiftRight<kShift>(hn::Add(hn::Add(magnitude, half), even)), splat(kRebias));
  // Adding a power of two whose unit in the last place is the smallest denormal lets the adder
  // round to a multiple of it. Clamped first, so that the sum of a large lane is not looked at.
  const VU32 magic = splat(static_cast<uint32_t>(127 + 1 - kBias - kMantissa + 23) << 23);
  const VU32 denormal = hn::Sub(bits_of(hn::Add(float_of(magnitude), float_of(magic))), magic);
  const VU32 code = hn::IfThenElse(less(magnitude, splat(kSmallestNormal)), denormal, normal);
  const VU32 limit = splat(largest);
  VU32 result = hn::IfThenElse(less(code, limit), code, limit);
  result = hn::Or(result, sign_bit == 15 ? hn::ShiftRight<16>(sign) : hn::ShiftRight<24>(sign));
  return hn::IfThenElse(hn::RebindMask(DU32(), hn::IsNaN(v)), splat(nan), result);
}

using DU16Half = hn::Rebind<uint16_t, DU32>;
using DU8Quarter = hn::Rebind<uint8_t, DU32>;
using DF16Half = hn::Rebind<hwy::float16_t, DF32>;

// The processor converts f16, exactly and to nearest even.
#if defined(__F16C__) || defined(__aarch64__)
#define ZBCCL_NATIVE_F16 1
#else
#define ZBCCL_NATIVE_F16 0
#endif

struct F16 {
  using Acc = VF32;
  using Packed = hn::Vec<DU16Half>;
  using Lane = float;
  static constexpr size_t kElementBytes = 2;
  static constexpr size_t kStepBytes = hn::MaxLanes(DU32()) * 2;

  static HWY_INLINE VF32 convert(hn::Vec<DU16Half> code) {
#if ZBCCL_NATIVE_F16
    return hn::PromoteTo(DF32(), hn::BitCast(DF16Half(), code));
#else
    return widen<10, 15, true>(hn::PromoteTo(DU32(), code), 15);
#endif
  }
  static HWY_INLINE Acc load(const uint8_t* p) { return convert(load_bytes(DU16Half(), p)); }
  static HWY_INLINE Packed pack(Acc v) {
#if ZBCCL_NATIVE_F16
    return hn::BitCast(DU16Half(), hn::DemoteTo(DF16Half(), F32::pack(v)));
#else
    const VU32 code = narrow<10, 15>(v, 0x7C00, 0x7E00, 15);
    return hn::DemoteTo(DU16Half(), hn::BitCast(DI32(), code));
#endif
  }
  static HWY_INLINE void store(Packed v, uint8_t* p) { store_bytes(DU16Half(), v, p); }
};

struct E4m3 {
  using Acc = VF32;
  using Packed = hn::Vec<DU8Quarter>;
  using Lane = float;
  static constexpr size_t kElementBytes = 1;
  static constexpr size_t kStepBytes = hn::MaxLanes(DU32());

  static HWY_INLINE Acc load(const uint8_t* p) {
    return widen<3, 7, false>(hn::PromoteTo(DU32(), load_bytes(DU8Quarter(), p)), 7);
  }
  static HWY_INLINE Packed pack(Acc v) { return hn::U8FromU32(narrow<3, 7>(v, 0x7E, 0x7F, 7)); }
  static HWY_INLINE void store(Packed v, uint8_t* p) { store_bytes(DU8Quarter(), v, p); }
};

// The upper half of f16.
struct E5m2 {
  using Acc = VF32;
  using Packed = hn::Vec<DU8Quarter>;
  using Lane = float;
  static constexpr size_t kElementBytes = 1;
  static constexpr size_t kStepBytes = hn::MaxLanes(DU32());

  static HWY_INLINE Acc load(const uint8_t* p) {
    const hn::Vec<DU16Half> code = hn::PromoteTo(DU16Half(), load_bytes(DU8Quarter(), p));
    return F16::convert(hn::ShiftLeft<8>(code));
  }
  static HWY_INLINE Packed pack(Acc v) { return hn::U8FromU32(narrow<2, 15>(v, 0x7C, 0x7F, 7)); }
  static HWY_INLINE void store(Packed v, uint8_t* p) { store_bytes(DU8Quarter(), v, p); }
};

// Integers. kElementBytes may be smaller than a lane where the operator works within lanes.
template <typename T, size_t kElement = sizeof(T)>
struct Integer {
  using D = hn::ScalableTag<T>;
  using Acc = hn::Vec<D>;
  using Packed = Acc;
  using Lane = T;
  static constexpr size_t kElementBytes = kElement;
  static constexpr size_t kStepBytes = hn::MaxLanes(D()) * sizeof(T);

  static HWY_INLINE Acc load(const uint8_t* p) { return load_bytes(D(), p); }
  static HWY_INLINE Packed pack(Acc v) { return v; }
  static HWY_INLINE void store(Packed v, uint8_t* p) { store_bytes(D(), v, p); }
};

}  // namespace
}  // namespace zbccl::kernels::ZBCCL_SIMD_TARGET
HWY_AFTER_NAMESPACE();
