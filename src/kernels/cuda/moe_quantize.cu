// Dispatch of rows that are quantized on their way. A warp reads a row of x, leaves its codes in
// shared memory, and pushes them from there by the bulk-copy engine to every place that the row
// goes to, so a row is quantized once. Bytes over the link: codes and scales. Two meetings, as
// moe_push.cu. Arithmetic: docs/numerics.md, "Rows of experts".
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_outputs.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/quantize.cuh"

namespace zbccl::cuda {
namespace {

constexpr int kMostWarps = 14;
constexpr int kLeastWarps = 4;
constexpr int kBuffers = 2;                       // of codes, which turn about
constexpr int kPassElements = 512;                // that a warp has at once, 16 in each lane
constexpr size_t kCodeBytes = size_t{200} << 10;  // of a block

template <DataType kType>
struct RowReader {
  using V = Vec<kType>;
  using Lanes = Sixteen<kType>;
  static constexpr int kElementBytes = kPackBytes / V::kLanes;

  const char* row;
  int hidden;
  int lane;

  // Calls use(pass, v) with the lane's elements of each pass, several of which are loaded at once.
  // They are zero beyond the row's end, which is the end of a pack.
  template <typename Use>
  __device__ __forceinline__ void for_each_pass(const Use& use) const {
    constexpr int kAtOnce = 8 / Lanes::kPacks;
    const int passes = (hidden + kPassElements - 1) / kPassElements;
    for (int first = 0; first < passes; first += kAtOnce) {
      typename Lanes::Packs packs[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int p = 0; p < Lanes::kPacks; ++p) {
          const int at = (first + i) * kPassElements + lane * 16 + p * V::kLanes;
          packs[i].pack[p] =
              at < hidden ? load_plain(row + static_cast<int64_t>(at) * kElementBytes) : Pack{};
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i >= passes) break;
        float v[16];
        Lanes::widen(v, packs[i]);
        use(first + i, v);
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

// One warp: a row's codes, and the scale of each group.
template <DataType kType>
__device__ __forceinline__ void quantize_fp8(const RowReader<kType>& reader, bool power_of_two,
                                             char* codes, float* scales) {
  constexpr float kLeast = 1e-4F;
  constexpr int kGroupLanes = kScaleGroup / 16;
  const int groups = (reader.hidden + kScaleGroup - 1) / kScaleGroup;
  reader.for_each_pass([&](int pass, const float(&v)[16]) {
    float amax = kLeast;
#pragma unroll
    for (int i = 0; i < 16; ++i) amax = fmaxf(amax, fabsf(v[i]));  // leaves NaN out
    amax = largest_among<kGroupLanes, false>(amax);
    float scale = divide(amax, 448.0F);
    if (power_of_two) scale = power_of_two_above(scale);
    const int first = pass * kPassElements + reader.lane * 16;
    *reinterpret_cast<Pack*>(codes + first) = encode<false>(v, divide(1.0F, scale));
    const int group = first / kScaleGroup;
    if (reader.lane % kGroupLanes == 0 && group < groups) scales[group] = scale;
  });
}

// The same with one scale for the row, which is read twice.
template <DataType kType>
__device__ __forceinline__ void quantize_int8(const RowReader<kType>& reader, char* codes,
                                              float* scales) {
  constexpr uint32_t kInfinity = 0x7F800000U;
  uint32_t most = 0;  // magnitudes compare as integers
  reader.for_each_pass([&](int /*pass*/, const float(&v)[16]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) most = max(most, bits_of(v[i]) & 0x7FFFFFFFU);
  });
  most = __reduce_max_sync(kWholeWarp, most);
  const bool finite = most < kInfinity;
  const float scale = scale_of(float_of(most), 127.0F);
  const float inverse = divide(1.0F, scale);
  reader.for_each_pass([&](int pass, const float(&v)[16]) {
    const int first = pass * kPassElements + reader.lane * 16;
    *reinterpret_cast<Pack*>(codes + first) = finite ? encode<true>(v, inverse) : Pack{};
  });
  if (reader.lane == 0) scales[0] = finite ? scale : float_of(0x7FC00000U);
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

template <DataType kType>
struct CodePusher {
  const DispatchArgs& args;
  const DispatchShared& shared;
  char* buffers;  // kBuffers of buffer_bytes
  int buffer_bytes;
  float* scales;
  int warp;
  int warps;
  int lane;

  __device__ __forceinline__ uint32_t target(int64_t token) const {
    if (token >= args.tokens || lane >= args.tables.width) return kNoTarget;
    return args.tables.targets[token * args.tables.width + lane];
  }

  // A row's codes, ready to be pushed, and its scales.
  __device__ __forceinline__ void quantize(int64_t token, char* codes) const {
    const RowReader<kType> reader = {args.x + token * args.x_stride, args.recv_row_bytes, lane};
    if (args.quant == MoeQuant::kInt8) {
      quantize_int8(reader, codes, scales);
    } else {
      quantize_fp8(reader, args.quant != MoeQuant::kFp8, codes, scales);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
  }

  // The first row, while the ranks meet.
  __device__ __forceinline__ void begin() const {
    if (__any_sync(kWholeWarp, target(warp) != kNoTarget) != 0) quantize(warp, buffers);
  }

  // After begin().
  __device__ __forceinline__ void run() const {
    const int hidden = args.recv_row_bytes;
    int pushed = 0;
    for (int64_t token = warp; token < args.tokens; token += warps) {
      const uint32_t to = target(token);
      if (__any_sync(kWholeWarp, to != kNoTarget) == 0) continue;
      char* const codes = buffers + (pushed++ % kBuffers) * buffer_bytes;
      if (token != warp) {
        await_reads<kBuffers - 1>();  // what was sent from it
        __syncwarp();
        quantize(token, codes);
      }
      const bool engine = to != kNoTarget && by_engine(shared.outputs[target_rank(to)], hidden);
      if (engine) {
        const MoeOutputs& out = shared.outputs[target_rank(to)];
        push_bytes(out.rows + target_row(to) * out.stride, codes, static_cast<uint32_t>(hidden));
      }
      commit_pushes();
      store_codes(shared, engine ? kNoTarget : to, codes, hidden, lane);
      put_scales(shared, to, args.num_scales, lane, [&](int s) { return scale_word(s); });
      put_notes(args, shared, static_cast<int>(token), to, lane);
      __syncwarp();
    }
    finish_pushes();
  }

  // Scale `s` as the outputs have it: a float, or the exponents of four.
  __device__ __forceinline__ uint32_t scale_word(int s) const {
    if (args.quant != MoeQuant::kFp8Ue8m0) return bits_of(scales[s]);
    const int groups = (args.recv_row_bytes + kScaleGroup - 1) / kScaleGroup;
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) {
      const int group = 4 * s + i;
      if (group < groups) word |= static_cast<uint32_t>(ue8m0_of(scales[group])) << (8 * i);
    }
    return word;
  }
};

// Shared memory of a warp.
struct WarpBytes {
  int32_t buffer;  // of codes
  int32_t scales;
};

template <DataType kType>
__global__ void __launch_bounds__(kMostWarps * 32)
    dispatch_codes(const __grid_constant__ TeamView view, const __grid_constant__ DispatchArgs args,
                   const WarpBytes bytes) {
  extern __shared__ __align__(128) char memory[];
  __shared__ DispatchShared shared;
  if (args.phase == MoePhase::kReceive) return receive(view, args);
  const Turn turn = begin(view);
  if (turn.ok) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int number = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
    const int warps = static_cast<int>(gridDim.x * blockDim.x) / 32;
    char* const mine = memory + warp * (kBuffers * bytes.buffer + bytes.scales);
    auto* const scales = reinterpret_cast<float*>(mine + kBuffers * bytes.buffer);
    const CodePusher<kType> pusher = {args,   shared, mine,  bytes.buffer,
                                      scales, number, warps, lane};
    pusher.begin();
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (meet_outputs(view, args, turn, &shared)) {
      pusher.run();
      fill_gaps(view, args, number, warps, lane);
      end_dispatch(view, args, turn);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

int round_up(int value, int to) { return (value + to - 1) / to * to; }

template <DataType kType>
cudaError_t load_type() {
  return cudaFuncSetAttribute(dispatch_codes<kType>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(kCodeBytes));
}

}  // namespace

cudaError_t launch_moe_quantize(const TeamView& view, const DispatchArgs& args, DataType type,
                                const LaunchShape& shape) {
  WarpBytes bytes = {};
  LaunchShape filled = receiver_shape(shape);
  size_t all = 0;
  if (args.phase != MoePhase::kReceive) {
    if (args.recv_row_bytes > kMostQuantizedHidden) return cudaErrorInvalidValue;
    bytes.buffer = round_up(args.recv_row_bytes, kPassElements);
    bytes.scales = round_up(bytes.buffer / kScaleGroup * static_cast<int>(sizeof(float)), 128);
    const auto each = static_cast<size_t>(kBuffers * bytes.buffer + bytes.scales);
    // Few rows are spread over many blocks.
    const int most = args.layout == MoeLayout::kExpertMasked ? kLeastWarps : kMostWarps;
    filled = shape;
    filled.threads = 32 * std::clamp(static_cast<int>(kCodeBytes / each), kLeastWarps, most);
    all = each * static_cast<size_t>(filled.threads / 32);
  }
  switch (type) {
    case DataType::kF32:
      return start(dispatch_codes<DataType::kF32>, filled, all, view, args, bytes);
    case DataType::kF16:
      return start(dispatch_codes<DataType::kF16>, filled, all, view, args, bytes);
    case DataType::kBf16:
      return start(dispatch_codes<DataType::kBf16>, filled, all, view, args, bytes);
    default: return cudaErrorInvalidValue;
  }
}

cudaError_t load_moe_quantize() {
  for (const auto load :
       {load_type<DataType::kF32>, load_type<DataType::kF16>, load_type<DataType::kBf16>}) {
    if (const cudaError_t code = load(); code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
