// The kernels of one instruction set. A target_*.cc defines ZBCCL_SIMD_TARGET and includes this;
// its compiler flags decide the instructions (Highway's static dispatch).
//
// Every function here has internal linkage or is Highway's, whose namespace is renamed for each
// target: if a function with vague linkage were emitted in several of these objects, the linker
// could choose the AVX-512 copy for a processor without it. For the same reason nothing of the
// standard library that is not a plain C function is called here. A test looks at the symbols.
#pragma once

#define ZBCCL_SIMD_PASTE2(a, b) a##b
#define ZBCCL_SIMD_PASTE(a, b) ZBCCL_SIMD_PASTE2(a, b)
#define ZBCCL_SIMD_HWY ZBCCL_SIMD_PASTE(zbccl_hwy_, ZBCCL_SIMD_TARGET)
#define hwy ZBCCL_SIMD_HWY

#include <hwy/highway.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/host/target_tables.h"

// These use what stands above, in this order.
// clang-format off
#include "kernels/host/formats-inl.h"
#include "kernels/host/operators-inl.h"
#include "kernels/host/groups-inl.h"
#include "kernels/host/rows-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace zbccl::kernels::ZBCCL_SIMD_TARGET {
namespace {

// kSources: the number of operands where it is known at compile time, else 0.
template <class Format, class Op, class Finish, size_t kSources>
struct Loop {
  using Acc = typename Format::Acc;
  using Packed = typename Format::Packed;
  static constexpr size_t kStep = Format::kStepBytes;
  static constexpr size_t kUnroll = kSources >= 4 ? 2 : 4;

  const Call& call;
  const Finish finish;
  const uint8_t* src[kSources == 0 ? 1 : kSources];
  uint8_t* const first_dst;

  HWY_INLINE explicit Loop(const Call& c)
      : call(c), finish(c), first_dst(static_cast<uint8_t*>(c.dst[0])) {
    for (size_t k = 0; k < kSources; ++k) src[k] = operand(k);
  }

  HWY_INLINE const uint8_t* operand(size_t k) const {
    return static_cast<const uint8_t*>(call.src[k]) + call.src_offset;
  }
  HWY_INLINE const uint8_t* source(size_t k) const { return kSources != 0 ? src[k] : operand(k); }
  HWY_INLINE size_t num_src() const { return kSources != 0 ? kSources : call.num_src; }

  template <size_t kCount>
  static HWY_INLINE void add(const uint8_t* p, Acc* acc) {
    HWY_UNROLL(4)
    for (size_t u = 0; u < kCount; ++u) acc[u] = combine<Op>(acc[u], Format::load(p + u * kStep));
  }

  // All loads of these kCount steps come before the first store, so a destination may be a source.
  template <size_t kCount>
  HWY_INLINE void compute(size_t at, Packed* out) const {
    Acc acc[kCount];
    HWY_UNROLL(4)
    for (size_t u = 0; u < kCount; ++u) acc[u] = Format::load(source(0) + at + u * kStep);
    if constexpr (kSources == 0) {
      for (size_t k = 1; k < call.num_src; ++k) {
        add<kCount>(operand(k) + at, acc);
      }
    } else {
      HWY_UNROLL(8)
      for (size_t k = 1; k < kSources; ++k) add<kCount>(src[k] + at, acc);
    }
    HWY_UNROLL(4)
    for (size_t u = 0; u < kCount; ++u) out[u] = Format::pack(finish(acc[u]));
  }

  template <size_t kCount>
  HWY_INLINE void write(size_t at, const Packed* out) const {
    HWY_UNROLL(4)
    for (size_t u = 0; u < kCount; ++u) Format::store(out[u], first_dst + at + u * kStep);
    for (size_t d = 1; d < call.num_dst; ++d) {
      uint8_t* const p = static_cast<uint8_t*>(call.dst[d]) + at;
      HWY_UNROLL(4)
      for (size_t u = 0; u < kCount; ++u) Format::store(out[u], p + u * kStep);
    }
  }

  // Many operands: a block of accumulators stays in the nearest cache while the operands pass over
  // it, kGroup at a time. So each operand is read in runs that the processor prefetches, and
  // operands that lie at the same distance from a page do not evict each other. Takes whole blocks
  // from the front; gives the bytes done.
  static constexpr size_t kGroup = 8;
  static constexpr size_t kBlockSteps = 64;

  template <size_t kCount>
  HWY_INLINE void add_group(size_t first, size_t at, Acc* block) const {
    const uint8_t* p[kCount];
    for (size_t j = 0; j < kCount; ++j) p[j] = operand(first + j) + at;
    for (size_t u = 0; u < kBlockSteps; ++u) {
      Acc acc = block[u];
      HWY_UNROLL(8)
      for (size_t j = 0; j < kCount; ++j) add<1>(p[j] + u * kStep, &acc);
      block[u] = acc;
    }
  }

  HWY_NOINLINE size_t run_blocks(size_t bytes) const {
    Acc block[kBlockSteps];
    size_t at = 0;
    for (; at + kBlockSteps * kStep <= bytes; at += kBlockSteps * kStep) {
      for (size_t u = 0; u < kBlockSteps; ++u) block[u] = Format::load(operand(0) + at + u * kStep);
      size_t k = 1;
      for (; k + kGroup <= call.num_src; k += kGroup) add_group<kGroup>(k, at, block);
      for (; k < call.num_src; ++k) add_group<1>(k, at, block);
      for (size_t u = 0; u < kBlockSteps; ++u) {
        const Packed out = Format::pack(finish(block[u]));
        write<1>(at + u * kStep, &out);
      }
    }
    return at;
  }

  // All of it is less than a step.
  void run_small(size_t bytes) const;

  HWY_INLINE void run() const {
    const size_t bytes = call.count * Format::kElementBytes;
    if (HWY_UNLIKELY(bytes < kStep)) {
      run_small(bytes);
      return;
    }
    // The rest that does not fill a step is done as the step that ends with the last element. It
    // is computed before anything is written, because it reads elements that other steps may
    // overwrite, and written last, with the same bits where it overlaps.
    const size_t rest = bytes % kStep;
    Packed last[1];
    compute<1>(bytes - kStep, last);
    size_t at = 0;
    if constexpr (kSources == 0) {
      if (call.num_src > 2 * kGroup) at = run_blocks(bytes);
    }
    Packed out[kUnroll];
    for (; at + kUnroll * kStep <= bytes; at += kUnroll * kStep) {
      compute<kUnroll>(at, out);
      write<kUnroll>(at, out);
    }
    for (; at + kStep <= bytes; at += kStep) {
      compute<1>(at, out);
      write<1>(at, out);
    }
    if (rest != 0) write<1>(bytes - kStep, last);
  }
};

// Copies of less than a vector without touching what lies behind.
#if HWY_TARGET <= HWY_AVX3 && defined(__x86_64__)
struct Partial {
  using D = hn::ScalableTag<uint8_t>;
  static HWY_INLINE void read(const uint8_t* p, size_t bytes, uint8_t* buffer) {
    hn::Store(hn::MaskedLoad(hn::FirstN(D(), bytes), D(), p), D(), buffer);
  }
  static HWY_INLINE void write(const uint8_t* buffer, size_t bytes, uint8_t* p) {
    hn::BlendedStore(hn::Load(D(), buffer), hn::FirstN(D(), bytes), D(), p);
  }
};
#else
struct Partial {
  static HWY_INLINE void read(const uint8_t* p, size_t bytes, uint8_t* buffer) {
    memcpy(buffer, p, bytes);
  }
  static HWY_INLINE void write(const uint8_t* buffer, size_t bytes, uint8_t* p) {
    memcpy(p, buffer, bytes);
  }
};
#endif

template <class Format, class Op, class Finish, size_t kSources>
void Loop<Format, Op, Finish, kSources>::run_small(size_t bytes) const {
  if (bytes == 0) return;
  alignas(64) uint8_t buffer[64] = {};
  Partial::read(source(0), bytes, buffer);
  Acc acc = Format::load(buffer);
  for (size_t k = 1; k < num_src(); ++k) {
    Partial::read(source(k), bytes, buffer);
    acc = combine<Op>(acc, Format::load(buffer));
  }
  Format::store(Format::pack(finish(acc)), buffer);
  for (size_t d = 0; d < call.num_dst; ++d) {
    Partial::write(buffer, bytes, static_cast<uint8_t*>(call.dst[d]));
  }
}

template <class Format, class Op, class Finish, size_t kSources>
void run(const Call& call) {
  Loop<Format, Op, Finish, kSources>(call).run();
}

// Two operands for everything; other common numbers only for sums, to bound the code.
template <class Format, class Op>
void reduce_any(const Call& call) {
  using Finish = Nothing<typename Format::Lane>;
  if (call.num_src == 2) return run<Format, Op, Finish, 2>(call);
  run<Format, Op, Finish, 0>(call);
}

template <class Format>
void reduce_sum(const Call& call) {
  using Finish = Nothing<typename Format::Lane>;
  switch (call.num_src) {
    case 2: return run<Format, Sum, Finish, 2>(call);
    case 3: return run<Format, Sum, Finish, 3>(call);
    case 4: return run<Format, Sum, Finish, 4>(call);
    case 8: return run<Format, Sum, Finish, 8>(call);
    default: return run<Format, Sum, Finish, 0>(call);
  }
}

template <class Format>
void reduce_average(const Call& call) {
  using Lane = typename Format::Lane;
  if ((call.divisor & (call.divisor - 1)) == 0) {
    return run<Format, Sum, Multiply<Lane>, 0>(call);
  }
  run<Format, Sum, Divide<Lane>, 0>(call);
}

// Past the cache; the caller fences. Four pages at a time, a vector of each in turn: so several
// pages of memory are open at once, which doubles what one core moves, and the prefetchers follow
// four streams.
constexpr size_t kStreams = 4;
constexpr size_t kStreamBytes = 4096;

HWY_INLINE void stream_vector(uint8_t* to, const uint8_t* from) {
  using D = hn::ScalableTag<uint32_t>;
  hn::Stream(load_bytes(D(), from), D(), reinterpret_cast<uint32_t*>(to));
}

void stream_copy(void* dst, const void* src, size_t bytes) {
  constexpr size_t kVector = hn::MaxLanes(hn::ScalableTag<uint32_t>()) * 4;
  auto* to = static_cast<uint8_t*>(dst);
  const auto* from = static_cast<const uint8_t*>(src);
  const size_t head = (0 - reinterpret_cast<uintptr_t>(to)) % kVector;
  if (kVector < 16 || bytes < head + kVector) {
    memcpy(to, from, bytes);
    return;
  }
  if (head != 0) memcpy(to, from, head);
  size_t at = head;
  for (; at + kStreams * kStreamBytes <= bytes; at += kStreams * kStreamBytes) {
    for (size_t i = 0; i < kStreamBytes; i += kVector) {
      HWY_UNROLL(4)
      for (size_t k = 0; k < kStreams; ++k) {
        stream_vector(to + at + k * kStreamBytes + i, from + at + k * kStreamBytes + i);
      }
    }
  }
  for (; at + kVector <= bytes; at += kVector) stream_vector(to + at, from + at);
  if (at < bytes) memcpy(to + at, from + at, bytes - at);
}

}  // namespace

#define ZBCCL_FLOAT_ROW(Format)                                                       \
  {                                                                                   \
    &reduce_sum<Format>, &reduce_any<Format, Product>, &reduce_any<Format, FloatMin>, \
        &reduce_any<Format, FloatMax>, &reduce_average<Format>                        \
  }
// Sums and products do not depend on the sign.
#define ZBCCL_INTEGER_ROW(Type, Unsigned)                                                       \
  {                                                                                             \
    &reduce_sum<Integer<Unsigned>>, &reduce_any<Integer<Unsigned>, IntegerProduct>,             \
        &reduce_any<Integer<Type>, IntegerMin>, &reduce_any<Integer<Type>, IntegerMax>, nullptr \
  }
#define ZBCCL_BYTE_ROW(Type)                                                                    \
  {                                                                                             \
    &reduce_sum<Integer<uint8_t>>, &reduce_any<Integer<uint16_t, 1>, ByteProduct>,              \
        &reduce_any<Integer<Type>, IntegerMin>, &reduce_any<Integer<Type>, IntegerMax>, nullptr \
  }

#define ZBCCL_SIMD_STRING2(name) #name
#define ZBCCL_SIMD_STRING(name) ZBCCL_SIMD_STRING2(name)

// In the order of DataType.
const Target kTable = {
#if defined(__aarch64__)
    "neon",
#else
    ZBCCL_SIMD_STRING(ZBCCL_SIMD_TARGET),
#endif
    {ZBCCL_FLOAT_ROW(F32), ZBCCL_FLOAT_ROW(F64), ZBCCL_FLOAT_ROW(F16), ZBCCL_FLOAT_ROW(Bf16),
     ZBCCL_FLOAT_ROW(E4m3), ZBCCL_FLOAT_ROW(E5m2), ZBCCL_BYTE_ROW(int8_t), ZBCCL_BYTE_ROW(uint8_t),
     ZBCCL_INTEGER_ROW(int32_t, uint32_t), ZBCCL_INTEGER_ROW(uint32_t, uint32_t),
     ZBCCL_INTEGER_ROW(int64_t, uint64_t), ZBCCL_INTEGER_ROW(uint64_t, uint64_t),
     ZBCCL_INTEGER_ROW(int16_t, uint16_t), ZBCCL_INTEGER_ROW(uint16_t, uint16_t)},
    &stream_copy,
    {&norm_row<F16>, &norm_row<Bf16Lanes>},
    {{&quantized_sum<F32, E4m3Code>, &quantized_sum<F32, Int8Code>},
     {&quantized_sum<F16, E4m3Code>, &quantized_sum<F16, Int8Code>},
     {&quantized_sum<Bf16Lanes, E4m3Code>, &quantized_sum<Bf16Lanes, Int8Code>}},
    {&sum_rows<F32>, nullptr, &sum_rows<F16>, &sum_rows<Bf16>},
    {&quantize_e4m3<F32>, nullptr, &quantize_e4m3<F16>, &quantize_e4m3<Bf16>},
    {&quantize_i8<F32>, nullptr, &quantize_i8<F16>, &quantize_i8<Bf16>}};

}  // namespace zbccl::kernels::ZBCCL_SIMD_TARGET
HWY_AFTER_NAMESPACE();

#undef hwy
