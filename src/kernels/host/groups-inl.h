// Rows of 16-bit floats that are normalised, and groups of elements that share a scale: what
// kernels/norm.h and kernels/quantize.h do, in the order of operations given there. Included by
// kernels-inl.h, once for each instruction set.
#pragma once

HWY_BEFORE_NAMESPACE();
namespace zbccl::kernels::ZBCCL_SIMD_TARGET {
namespace {

// As F16 and F32: one vector of neighbouring elements.
struct Bf16Lanes {
  using Packed = hn::Vec<DU16Half>;
  static constexpr size_t kElementBytes = 2;

  static HWY_INLINE VF32 load(const uint8_t* p) {
    return float_of(hn::ShiftLeft<16>(hn::PromoteTo(DU32(), load_bytes(DU16Half(), p))));
  }
  static HWY_INLINE Packed pack(VF32 v) {
    return hn::DemoteTo(DU16Half(), hn::BitCast(DI32(), hn::ShiftRight<16>(Bf16::round(v))));
  }
  static HWY_INLINE void store(Packed v, uint8_t* p) { store_bytes(DU16Half(), v, p); }
};

constexpr size_t kLanes = hn::MaxLanes(DF32());
constexpr size_t kGroup = kScaleGroup;
constexpr size_t kPack = 8;                 // elements whose squares are added one after another
constexpr size_t kRunPacks = 32;            // packs whose sums are added by halves
constexpr size_t kRun = kPack * kRunPacks;  // elements
constexpr size_t kMaxBytes = 4;             // of an element
constexpr float kE4m3Largest = 448.0F;
constexpr float kInt8Largest = 127.0F;
constexpr float kLeastAmax = 1e-10F;

HWY_INLINE uint32_t scalar_bits(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
HWY_INLINE float scalar_float(uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

// --- groups ---

// The largest magnitude of a group, a NaN left out; *finite: none of them is infinite or NaN.
HWY_INLINE float largest_of_group(const float* v, bool* finite) {
  const DF32 d;
  const VF32 infinity = float_of(splat(0x7F800000U));
  VF32 amax = hn::Zero(d);
  auto bounded = hn::Eq(amax, amax);
  for (size_t i = 0; i < kGroup; i += kLanes) {
    const VF32 magnitude = hn::Abs(hn::LoadU(d, v + i));
    amax = hn::IfThenElse(hn::Lt(amax, magnitude), magnitude, amax);
    bounded = hn::And(bounded, hn::Lt(magnitude, infinity));
  }
  *finite = hn::AllTrue(d, bounded);
  return hn::GetLane(hn::MaxOfLanes(d, amax));
}

HWY_INLINE float scale_of(float amax, float largest_code) {
  return (amax > kLeastAmax ? amax : kLeastAmax) / largest_code;
}

HWY_INLINE float power_of_two_above(float scale) {
  return scalar_float((scalar_bits(scale) + 0x007FFFFFU) & 0x7F800000U);
}

HWY_INLINE VU32 e4m3_of(VF32 v) { return narrow<3, 7>(v, 0x7E, 0x7F, 7); }

// What a code stands for before it is scaled.
struct E4m3Code {
  static HWY_INLINE float scale(const float* v) {
    bool finite = false;
    return scale_of(largest_of_group(v, &finite), kE4m3Largest);
  }
  static HWY_INLINE VF32 rounded(VF32 v) { return widen<3, 7, false>(e4m3_of(v), 7); }
};

struct Int8Code {
  static HWY_INLINE float scale(const float* v) {
    bool finite = false;
    const float amax = largest_of_group(v, &finite);
    return finite ? scale_of(amax, kInt8Largest) : scalar_float(0x7FC00000U);
  }
  // To 1.5 * 2^23 any value of int8 is added exactly, and what is below the point is rounded off.
  static HWY_INLINE VF32 rounded(VF32 v) {
    const VF32 to_integer = hn::Set(DF32(), 12582912.0F);
    return hn::Sub(hn::Add(v, to_integer), to_integer);
  }
};

// v[i] becomes what its code stands for.
template <class Code>
HWY_INLINE void quantize_group(float* v) {
  const DF32 d;
  const float scale = Code::scale(v);
  const VF32 by = hn::Set(d, scale);
  const VF32 inverse = hn::Set(d, 1.0F / scale);
  for (size_t i = 0; i < kGroup; i += kLanes) {
    hn::StoreU(hn::Mul(Code::rounded(hn::Mul(hn::LoadU(d, v + i), inverse)), by), d, v + i);
  }
}

template <class Format>
HWY_INLINE void widen_elements(const uint8_t* from, size_t count, float* v) {
  for (size_t i = 0; i < count; i += kLanes) {
    hn::StoreU(Format::load(from + i * Format::kElementBytes), DF32(), v + i);
  }
}

template <class Format>
HWY_INLINE void narrow_elements(const float* v, size_t count, uint8_t* to) {
  for (size_t i = 0; i < count; i += kLanes) {
    Format::store(Format::pack(hn::LoadU(DF32(), v + i)), to + i * Format::kElementBytes);
  }
}

// A group is read whole before any of it is written.
template <class Format, class Code>
void quantized_sum(const Call& call) {
  constexpr size_t kBytes = Format::kElementBytes;
  alignas(64) float sum[kGroup];
  alignas(64) float v[kGroup];
  alignas(64) uint8_t piece[kGroup * kMaxBytes];
  for (size_t first = 0; first < call.count; first += kGroup) {
    const size_t count = call.count - first < kGroup ? call.count - first : kGroup;
    for (size_t k = 0; k < call.num_src; ++k) {
      const auto* from =
          static_cast<const uint8_t*>(call.src[k]) + call.src_offset + first * kBytes;
      if (count < kGroup) {
        memset(piece, 0, sizeof piece);
        memcpy(piece, from, count * kBytes);
        from = piece;
      }
      widen_elements<Format>(from, kGroup, k == 0 ? sum : v);
      quantize_group<Code>(k == 0 ? sum : v);
      for (size_t i = 0; k > 0 && i < kGroup; i += kLanes) {
        const VF32 both = hn::Add(hn::LoadU(DF32(), sum + i), hn::LoadU(DF32(), v + i));
        hn::StoreU(both, DF32(), sum + i);
      }
    }
    quantize_group<Code>(sum);
    narrow_elements<Format>(sum, kGroup, piece);
    for (size_t d = 0; d < call.num_dst; ++d) {
      memcpy(static_cast<uint8_t*>(call.dst[d]) + first * kBytes, piece, count * kBytes);
    }
  }
}

// --- rows ---

// By halves: neighbours at half the distance first.
HWY_INLINE float sum_by_halves(float* v, size_t count) {
  for (size_t half = count / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) v[i] = v[i] + v[i + half];
  }
  return v[0];
}

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void sums_of_packs(const float* r, float* sums) {
  for (size_t p = 0; p < kRunPacks; ++p) {
    sums[p] = r[p * kPack] * r[p * kPack];
    for (size_t e = 1; e < kPack; ++e) sums[p] = sums[p] + r[p * kPack + e] * r[p * kPack + e];
  }
}
#else
using DFour = hn::FixedTag<float, 4>;
using VFour = hn::Vec<DFour>;

// Element e of four packs, for four neighbouring e.
struct Columns {
  VFour c[4];
  HWY_INLINE explicit Columns(const float* r) {
    const DFour d;
    const hn::RepartitionToWide<DFour> wide;
    const VFour a = hn::LoadU(d, r);
    const VFour b = hn::LoadU(d, r + kPack);
    const VFour e = hn::LoadU(d, r + 2 * kPack);
    const VFour f = hn::LoadU(d, r + 3 * kPack);
    const auto ab_low = hn::BitCast(wide, hn::InterleaveLower(d, a, b));
    const auto ef_low = hn::BitCast(wide, hn::InterleaveLower(d, e, f));
    const auto ab_high = hn::BitCast(wide, hn::InterleaveUpper(d, a, b));
    const auto ef_high = hn::BitCast(wide, hn::InterleaveUpper(d, e, f));
    c[0] = hn::BitCast(d, hn::InterleaveLower(wide, ab_low, ef_low));
    c[1] = hn::BitCast(d, hn::InterleaveUpper(wide, ab_low, ef_low));
    c[2] = hn::BitCast(d, hn::InterleaveLower(wide, ab_high, ef_high));
    c[3] = hn::BitCast(d, hn::InterleaveUpper(wide, ab_high, ef_high));
  }
};

HWY_INLINE void sums_of_packs(const float* r, float* sums) {
  for (size_t p = 0; p < kRunPacks; p += 4) {
    const Columns low(r + p * kPack);
    const Columns high(r + p * kPack + 4);
    VFour sum = hn::Mul(low.c[0], low.c[0]);
    for (size_t e = 1; e < 4; ++e) sum = hn::Add(sum, hn::Mul(low.c[e], low.c[e]));
    for (size_t e = 0; e < 4; ++e) sum = hn::Add(sum, hn::Mul(high.c[e], high.c[e]));
    hn::StoreU(sum, DFour(), sums + p);
  }
}
#endif

// Where the elements of one run lie. What is null is left out.
struct Run {
  const uint8_t* x;
  const uint8_t* residual;
  const uint8_t* weight;
  uint8_t* residual_out;
  uint8_t* out;
  uint8_t* codes;
};

// r = x + residual, rounded, and the sum of its squares.
template <class Format>
HWY_INLINE float add_residual(const Run& run, float* r) {
  constexpr size_t kBytes = Format::kElementBytes;
  if (run.residual == nullptr) {
    widen_elements<Format>(run.x, kRun, r);
    if (run.residual_out != nullptr) memcpy(run.residual_out, run.x, kRun * kBytes);
  } else {
    alignas(64) uint8_t rounded[kRun * kBytes];
    for (size_t i = 0; i < kRun; i += kLanes) {
      const VF32 sum =
          hn::Add(Format::load(run.x + i * kBytes), Format::load(run.residual + i * kBytes));
      Format::store(Format::pack(sum), rounded + i * kBytes);
    }
    widen_elements<Format>(rounded, kRun, r);
    if (run.residual_out != nullptr) memcpy(run.residual_out, rounded, kRun * kBytes);
  }
  float sums[kRunPacks];
  sums_of_packs(r, sums);
  return sum_by_halves(sums, kRunPacks);
}

HWY_INLINE void store_codes(const float* y, size_t count, float inverse, uint8_t* codes) {
  const VF32 by = hn::Set(DF32(), inverse);
  for (size_t i = 0; i < count; i += kLanes) {
    const VU32 code = e4m3_of(hn::Mul(hn::LoadU(DF32(), y + i), by));
    store_bytes(DU8Quarter(), hn::U8FromU32(code), codes + i);
  }
}

// y of the run's first `count` elements, which is a multiple of the group where groups have scales.
template <class Format>
HWY_INLINE void normalise(const NormRow& row, const Run& run, size_t at, size_t count, float factor,
                          const float* r) {
  constexpr size_t kBytes = Format::kElementBytes;
  alignas(64) float y[kRun];
  const VF32 by = hn::Set(DF32(), factor);
  const VF32 one = hn::Set(DF32(), 1.0F);
  for (size_t i = 0; i < kRun; i += kLanes) {
    VF32 weight = Format::load(run.weight + i * kBytes);
    if (row.one_plus_weight) weight = hn::Add(one, weight);
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(DF32(), r + i), by), weight), DF32(), y + i);
  }
  if (run.out != nullptr) narrow_elements<Format>(y, kRun, run.out);
  if (row.form == NormCodes::kNone) return;
  if (row.form == NormCodes::kTensorScale) {
    store_codes(y, kRun, row.inverse_scale, run.codes);
    return;
  }
  for (size_t first = 0; first < count; first += kGroup) {
    const size_t group = (at + first) / kGroup;
    float scale = E4m3Code::scale(y + first);
    if (row.form == NormCodes::kGroupPowersOfTwo) {
      scale = power_of_two_above(scale);
      row.exponents[group] = static_cast<uint8_t>(scalar_bits(scale) >> 23);
    }
    row.scales[group] = scale;
    store_codes(y + first, kGroup, 1.0F / scale, run.codes + first);
  }
}

// What a run that the row does not fill is copied to and from, with zeros behind its end.
template <size_t kBytes>
struct Ragged {
  alignas(64) uint8_t x[kRun * kBytes];
  alignas(64) uint8_t residual[kRun * kBytes];
  alignas(64) uint8_t weight[kRun * kBytes];
  alignas(64) uint8_t residual_out[kRun * kBytes];
  alignas(64) uint8_t out[kRun * kBytes];
  alignas(64) uint8_t codes[kRun];

  static HWY_INLINE void fill(uint8_t* to, const uint8_t* from, size_t bytes) {
    memset(to, 0, kRun * kBytes);
    memcpy(to, from, bytes);
  }
};

template <class Format>
void norm_row(const NormRow& row) {
  constexpr size_t kBytes = Format::kElementBytes;
  Ragged<kBytes> ragged;
  const auto run_at = [&](size_t at, bool whole) -> Run {
    const auto* x = static_cast<const uint8_t*>(row.x) + at * kBytes;
    const auto* residual = static_cast<const uint8_t*>(row.residual);
    const auto* weight = static_cast<const uint8_t*>(row.weight) + at * kBytes;
    if (residual != nullptr) residual += at * kBytes;
    if (whole) {
      auto* const residual_out = static_cast<uint8_t*>(row.residual_out);
      auto* const out = static_cast<uint8_t*>(row.out);
      return {x,
              residual,
              weight,
              residual_out != nullptr ? residual_out + at * kBytes : nullptr,
              out != nullptr ? out + at * kBytes : nullptr,
              row.codes != nullptr ? row.codes + at : nullptr};
    }
    const size_t bytes = (row.hidden - at) * kBytes;
    ragged.fill(ragged.x, x, bytes);
    if (residual != nullptr) ragged.fill(ragged.residual, residual, bytes);
    ragged.fill(ragged.weight, weight, bytes);
    return {ragged.x,      residual != nullptr ? ragged.residual : nullptr,
            ragged.weight, ragged.residual_out,
            ragged.out,    ragged.codes};
  };
  float lanes[32] = {};
  size_t at = 0;
  for (; at < row.hidden; at += kRun) {
    const bool whole = at + kRun <= row.hidden;
    const float sum = add_residual<Format>(run_at(at, whole), row.widened + at);
    float& lane = lanes[at / kRun % 32];
    lane = lane + sum;
    if (!whole && row.residual_out != nullptr) {
      memcpy(static_cast<uint8_t*>(row.residual_out) + at * kBytes, ragged.residual_out,
             (row.hidden - at) * kBytes);
    }
  }
  const float mean = sum_by_halves(lanes, 32) / static_cast<float>(row.hidden);
  const float factor = 1.0F / sqrtf(mean + row.epsilon);
  for (at = 0; at < row.hidden; at += kRun) {
    const bool whole = at + kRun <= row.hidden;
    const size_t count = whole ? kRun : row.hidden - at;
    normalise<Format>(row, run_at(at, whole), at, count, factor, row.widened + at);
    if (whole) continue;
    if (row.out != nullptr) {
      memcpy(static_cast<uint8_t*>(row.out) + at * kBytes, ragged.out, count * kBytes);
    }
    if (row.form != NormCodes::kNone) memcpy(row.codes + at, ragged.codes, count);
  }
}

}  // namespace
}  // namespace zbccl::kernels::ZBCCL_SIMD_TARGET
HWY_AFTER_NAMESPACE();
