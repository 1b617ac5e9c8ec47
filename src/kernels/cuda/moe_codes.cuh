// Rows of experts as codes: quantized into shared memory, and what of them the bulk-copy engine
// cannot push. Arithmetic: docs/numerics.md, "Rows of experts".
#pragma once

#include "kernels/cuda/moe_outputs.cuh"
#include "kernels/cuda/quantize.cuh"

namespace zbccl::cuda {

// A row of x, by `threads` threads, a multiple of 32, of which this is number `thread`.
// It has up to kPacksAtOnce packs under way.
template <DataType kType, int kPacksAtOnce>
struct RowReader {
  using V = Vec<kType>;
  using Lanes = Sixteen<kType>;
  static constexpr int kElementBytes = kPackBytes / V::kLanes;

  const char* row;
  int hidden;
  int thread;
  int threads;

  // What several passes over the row need, loaded together.
  static constexpr int kAtOnce =
      kPacksAtOnce > Lanes::kPacks ? kPacksAtOnce / Lanes::kPacks : 1;  // passes
  struct Loaded {
    typename Lanes::Packs packs[kAtOnce];
  };

  __device__ __forceinline__ int pass() const { return 16 * threads; }
  // From pass `first` on; zeros beyond the row's end, which is the end of a pack.
  __device__ __forceinline__ void load(Loaded* loaded, int first) const {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int p = 0; p < Lanes::kPacks; ++p) {
        const int at = (first + i) * pass() + thread * 16 + p * V::kLanes;
        loaded->packs[i].pack[p] =
            at < hidden ? load_plain(row + static_cast<int64_t>(at) * kElementBytes) : Pack{};
      }
    }
  }

  // Calls use(first, v) with this thread's elements from `first` on in each pass. `loaded`: what
  // the first ones need. The next ones are loaded meanwhile.
  template <typename Use>
  __device__ __forceinline__ void for_each_pass(Loaded loaded, const Use& use) const {
    const int passes = (hidden + pass() - 1) / pass();
    for (int first = 0; first < passes; first += kAtOnce) {
      const Loaded now = loaded;
      if (first + kAtOnce < passes) load(&loaded, first + kAtOnce);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i >= passes) break;
        float v[16];
        Lanes::widen(v, now.packs[i]);
        use((first + i) * pass() + thread * 16, v);
      }
    }
  }
};

__device__ __forceinline__ uint32_t integer_codes(float a, float b, float c, float d) {
  const auto code = [](float v) { return static_cast<uint32_t>(__float2int_rn(v)) & 0xFFU; };
  return code(a) | code(b) << 8 | code(c) << 16 | code(d) << 24;
}

// Scaled by `inverse`.
template <bool kInteger>
__device__ __forceinline__ Pack encode(const float (&v)[16], float inverse) {
  Pack codes;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float a = multiply(v[4 * i], inverse);
    const float b = multiply(v[4 * i + 1], inverse);
    const float c = multiply(v[4 * i + 2], inverse);
    const float d = multiply(v[4 * i + 3], inverse);
    codes.w[i] = kInteger ? integer_codes(a, b, c, d) : E4m3::narrow_four(a, b, c, d);
  }
  return codes;
}

// A row's codes, and the scale of each group, by whole warps. `loaded`: from its first pass on;
// `codes`: whole packs, aligned.
template <typename Reader>
__device__ __forceinline__ void quantize_fp8(const Reader& reader,
                                             const typename Reader::Loaded& loaded,
                                             bool power_of_two, char* codes, float* scales) {
  constexpr float kLeast = 1e-4F;
  constexpr int kGroupLanes = kScaleGroup / 16;
  reader.for_each_pass(loaded, [&](int first, const float(&v)[16]) {
    float amax = kLeast;
#pragma unroll
    for (int i = 0; i < 16; ++i) amax = fmaxf(amax, fabsf(v[i]));  // leaves NaN out
    amax = largest_among<kGroupLanes, false>(amax);
    float scale = divide(amax, 448.0F);
    if (power_of_two) scale = power_of_two_above(scale);
    if (first >= reader.hidden) return;
    *reinterpret_cast<Pack*>(codes + first) = encode<false>(v, divide(1.0F, scale));
    if (first % kScaleGroup == 0) scales[first / kScaleGroup] = scale;
  });
}

// The same with one scale for the row, which is read twice. `largest(v)`: of all threads.
template <typename Reader, typename Largest>
__device__ __forceinline__ void quantize_int8(const Reader& reader,
                                              const typename Reader::Loaded& loaded, char* codes,
                                              float* scales, const Largest& largest) {
  constexpr uint32_t kInfinity = 0x7F800000U;
  uint32_t most = 0;  // magnitudes compare as integers
  reader.for_each_pass(loaded, [&](int /*first*/, const float(&v)[16]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) most = max(most, bits_of(v[i]) & 0x7FFFFFFFU);
  });
  most = largest(most);
  const bool finite = most < kInfinity;
  const float scale = scale_of(float_of(most), 127.0F);
  const float inverse = divide(1.0F, scale);
  reader.for_each_pass(loaded, [&](int first, const float(&v)[16]) {
    if (first >= reader.hidden) return;
    *reinterpret_cast<Pack*>(codes + first) = finite ? encode<true>(v, inverse) : Pack{};
  });
  if (reader.thread == 0) scales[0] = finite ? scale : float_of(0x7FC00000U);
}

// Where the engine cannot: other alignments. `target`: of one lane each.
__device__ __forceinline__ void store_codes(const DispatchShared& shared, uint32_t target,
                                            const char* codes, int bytes, int lane) {
  uint32_t left = __ballot_sync(kWholeWarp, target != kNoTarget);
  for (; left != 0; left &= left - 1) {
    const uint32_t to = __shfl_sync(kWholeWarp, target, __ffs(static_cast<int>(left)) - 1);
    const MoeOutputs& out = shared.outputs[target_rank(to)];
    char* const row = out.rows + target_row(to) * out.stride;
    if (((reinterpret_cast<uint64_t>(row) | static_cast<uint64_t>(bytes)) & 3) == 0) {
      for (int i = lane * 4; i < bytes; i += 32 * 4) {
        *reinterpret_cast<uint32_t*>(row + i) = *reinterpret_cast<const uint32_t*>(codes + i);
      }
    } else {
      for (int i = lane; i < bytes; i += 32) row[i] = codes[i];
    }
  }
}

__device__ __forceinline__ bool by_engine(const MoeOutputs& out, int bytes) {
  return ((reinterpret_cast<uint64_t>(out.rows) | static_cast<uint64_t>(out.stride) |
           static_cast<uint64_t>(bytes)) &
          (kPackBytes - 1)) == 0;
}

// Scale `s` of a row as the outputs have it: a float, or the exponents of four.
__device__ __forceinline__ uint32_t scale_word(const DispatchArgs& args, const float* scales,
                                               int s) {
  if (args.quant != MoeQuant::kFp8Ue8m0) return bits_of(scales[s]);
  const int groups = (args.recv_row_bytes + kScaleGroup - 1) / kScaleGroup;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const int group = 4 * s + i;
    if (group < groups) word |= static_cast<uint32_t>(ue8m0_of(scales[group])) << (8 * i);
  }
  return word;
}

}  // namespace zbccl::cuda
