// Weighted sums of rows, and their quantization. Included by kernels-inl.h, once for each
// instruction set.
#pragma once

HWY_BEFORE_NAMESPACE();
namespace zbccl::kernels::ZBCCL_SIMD_TARGET {
namespace {

HWY_INLINE VF32 times(VF32 v, VF32 factor) { return hn::Mul(v, factor); }
HWY_INLINE Pair<VF32> times(Pair<VF32> v, VF32 factor) {
  return {hn::Mul(v.a, factor), hn::Mul(v.b, factor)};
}

template <class Acc>
struct Zero;
template <>
struct Zero<VF32> {
  static HWY_INLINE VF32 get() { return hn::Zero(DF32()); }
};
template <>
struct Zero<Pair<VF32>> {
  static HWY_INLINE Pair<VF32> get() { return {hn::Zero(DF32()), hn::Zero(DF32())}; }
};

template <class Format>
struct RowSummer {
  using Acc = typename Format::Acc;
  static constexpr size_t kStep = Format::kStepBytes;

  const RowSum& call;

  HWY_INLINE const uint8_t* source(size_t k) const {
    return static_cast<const uint8_t*>(call.src[k]);
  }

  template <size_t kCount, bool kWeighted>
  HWY_INLINE void add_rows(size_t at, Acc* acc) const {
    for (size_t k = 0; k < call.num_src; ++k) {
      const uint8_t* const p = source(k) + at;
      HWY_UNROLL(4)
      for (size_t u = 0; u < kCount; ++u) {
        Acc row = Format::load(p + u * kStep);
        if constexpr (kWeighted) row = times(row, hn::Set(DF32(), call.weights[k]));
        acc[u] = combine<Sum>(acc[u], row);
      }
    }
  }

  template <size_t kCount>
  HWY_INLINE void start(size_t at, Acc* acc) const {
    const auto* first =
        static_cast<const uint8_t*>(call.bias[0] != nullptr ? call.bias[0] : call.bias[1]);
    HWY_UNROLL(4)
    for (size_t u = 0; u < kCount; ++u) {
      acc[u] = first == nullptr ? Zero<Acc>::get() : Format::load(first + at + u * kStep);
    }
    if (call.bias[0] == nullptr || call.bias[1] == nullptr) return;
    const auto* const second = static_cast<const uint8_t*>(call.bias[1]) + at;
    HWY_UNROLL(4)
    for (size_t u = 0; u < kCount; ++u) {
      acc[u] = combine<Sum>(acc[u], Format::load(second + u * kStep));
    }
  }

  template <size_t kCount, bool kWeighted>
  HWY_INLINE void steps(size_t at) const {
    Acc acc[kCount];
    start<kCount>(at, acc);
    add_rows<kCount, kWeighted>(at, acc);
    auto* const out = static_cast<uint8_t*>(call.out) + at;
    HWY_UNROLL(4)
    for (size_t u = 0; u < kCount; ++u) Format::store(Format::pack(acc[u]), out + u * kStep);
  }

  // Less than a step in all.
  void run_small(size_t bytes) const {
    alignas(64) uint8_t buffer[64] = {};
    const void* const rows[2] = {call.bias[0], call.bias[1]};
    Acc acc = Zero<Acc>::get();
    bool started = false;
    for (const void* row : rows) {
      if (row == nullptr) continue;
      memcpy(buffer, row, bytes);
      acc = started ? combine<Sum>(acc, Format::load(buffer)) : Format::load(buffer);
      started = true;
    }
    for (size_t k = 0; k < call.num_src; ++k) {
      memcpy(buffer, call.src[k], bytes);
      Acc row = Format::load(buffer);
      if (call.weights != nullptr) row = times(row, hn::Set(DF32(), call.weights[k]));
      acc = combine<Sum>(acc, row);
    }
    Format::store(Format::pack(acc), buffer);
    memcpy(call.out, buffer, bytes);
  }

  template <bool kWeighted>
  HWY_INLINE void run() const {
    const size_t bytes = call.count * Format::kElementBytes;
    if (bytes < kStep) return run_small(bytes);
    size_t at = 0;
    for (; at + 4 * kStep <= bytes; at += 4 * kStep) steps<4, kWeighted>(at);
    for (; at + kStep <= bytes; at += kStep) steps<1, kWeighted>(at);
    // The step that ends with the last element; what it writes again are the same bits.
    if (at < bytes) steps<1, kWeighted>(bytes - kStep);
  }
};

template <class Format>
void sum_rows(const RowSum& call) {
  const RowSummer<Format> summer{call};
  call.weights != nullptr ? summer.template run<true>() : summer.template run<false>();
}

// Magnitudes as the bits of f32, which compare as integers.
using VI32 = hn::Vec<DI32>;

template <bool kSkipNan>
HWY_INLINE VI32 magnitude(VF32 v) {
  const VU32 bits = hn::And(bits_of(v), splat(0x7FFFFFFFU));
  if (!kSkipNan) return hn::BitCast(DI32(), bits);
  return hn::BitCast(DI32(), hn::IfThenZeroElse(hn::RebindMask(DU32(), hn::IsNaN(v)), bits));
}
template <bool kSkipNan>
HWY_INLINE VI32 magnitude(Pair<VF32> v) {
  return hn::Max(magnitude<kSkipNan>(v.a), magnitude<kSkipNan>(v.b));
}

template <class Format, bool kSkipNan>
HWY_INLINE VI32 largest(const uint8_t* p, size_t bytes, VI32 so_far) {
  for (size_t at = 0; at < bytes; at += Format::kStepBytes) {
    so_far = hn::Max(so_far, magnitude<kSkipNan>(Format::load(p + at)));
  }
  return so_far;
}

HWY_INLINE uint32_t largest_lane(VI32 v) {
  alignas(64) int32_t lanes[hn::MaxLanes(DI32())];
  hn::Store(v, DI32(), lanes);
  int32_t most = 0;
  for (const int32_t lane : lanes) most = lane > most ? lane : most;
  return static_cast<uint32_t>(most);
}

HWY_INLINE VU32 integer_code(VF32 v) {
  return hn::And(hn::BitCast(DU32(), hn::NearestInt(v)), splat(0xFF));
}

template <bool kInteger>
HWY_INLINE VU32 code_of(VF32 v) {
  return kInteger ? integer_code(v) : e4m3_of(v);
}

// One byte for each element of a step, in order.
template <bool kInteger>
HWY_INLINE void put_codes(VF32 v, uint8_t* p) {
  store_bytes(DU8Quarter(), hn::U8FromU32(code_of<kInteger>(v)), p);
}
template <bool kInteger>
HWY_INLINE void put_codes(Pair<VF32> v, uint8_t* p) {
  const VU32 both = hn::Or(code_of<kInteger>(v.a), hn::ShiftLeft<8>(code_of<kInteger>(v.b)));
  store_bytes(DU16Half(), hn::DemoteTo(DU16Half(), hn::BitCast(DI32(), both)), p);
}

template <class Format, bool kInteger>
HWY_INLINE void encode(const uint8_t* p, size_t bytes, float inverse, uint8_t* codes) {
  const VF32 factor = hn::Set(DF32(), inverse);
  for (size_t at = 0; at < bytes; at += Format::kStepBytes) {
    put_codes<kInteger>(times(Format::load(p + at), factor), codes + at / Format::kElementBytes);
  }
}

// A group, or the row's last elements among zeros, which change neither scale nor codes.
template <class Format>
HWY_INLINE float encode_group(const uint8_t* p, bool power_of_two, uint8_t* codes) {
  constexpr size_t kBytes = kGroup * Format::kElementBytes;
  constexpr float kLeast = 1e-4F;
  const float amax = scalar_float(largest_lane(largest<Format, true>(p, kBytes, hn::Zero(DI32()))));
  float scale = (amax > kLeast ? amax : kLeast) / kE4m3Largest;
  if (power_of_two) scale = power_of_two_above(scale);
  encode<Format, false>(p, kBytes, 1.0F / scale, codes);
  return scale;
}

template <class Format>
void quantize_e4m3(const RowQuantization& call) {
  constexpr size_t kElement = Format::kElementBytes;
  const auto* const src = static_cast<const uint8_t*>(call.src);
  auto* const codes = static_cast<uint8_t*>(call.codes);
  const size_t whole = call.count / kGroup;
  for (size_t g = 0; g < whole; ++g) {
    call.scales[g] =
        encode_group<Format>(src + g * kGroup * kElement, call.power_of_two, codes + g * kGroup);
  }
  const size_t rest = call.count % kGroup;
  if (rest == 0) return;
  alignas(64) uint8_t last[kGroup * kElement] = {};
  alignas(64) uint8_t last_codes[kGroup];
  memcpy(last, src + whole * kGroup * kElement, rest * kElement);
  call.scales[whole] = encode_group<Format>(last, call.power_of_two, last_codes);
  memcpy(codes + whole * kGroup, last_codes, rest);
}

template <class Format>
void quantize_i8(const RowQuantization& call) {
  constexpr size_t kElement = Format::kElementBytes;
  const auto* const src = static_cast<const uint8_t*>(call.src);
  auto* const codes = static_cast<uint8_t*>(call.codes);
  const size_t whole = call.count / kGroup * kGroup;
  const size_t rest = call.count - whole;
  alignas(64) uint8_t last[kGroup * kElement] = {};
  memcpy(last, src + whole * kElement, rest * kElement);
  VI32 most = largest<Format, false>(src, whole * kElement, hn::Zero(DI32()));
  most = largest<Format, false>(last, sizeof last, most);
  uint32_t bits = largest_lane(most);
  if (bits >= 0x7F800000U) bits = 0x7FC00000U;  // there is no code for what is not finite
  const float amax = scalar_float(bits);
  const float scale = scale_of(amax, kInt8Largest);
  const bool finite = bits != 0x7FC00000U;
  call.scales[0] = finite ? scale : scalar_float(0x7FC00000U);
  if (!finite) {
    memset(codes, 0, call.count);
    return;
  }
  const float inverse = 1.0F / scale;
  encode<Format, true>(src, whole * kElement, inverse, codes);
  if (rest == 0) return;
  alignas(64) uint8_t last_codes[kGroup];
  encode<Format, true>(last, sizeof last, inverse, last_codes);
  memcpy(codes + whole, last_codes, rest);
}

}  // namespace
}  // namespace zbccl::kernels::ZBCCL_SIMD_TARGET
HWY_AFTER_NAMESPACE();
