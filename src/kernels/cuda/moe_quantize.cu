// Dispatch of rows that are quantized on their way. A warp reads a row of x, leaves its codes in
// shared memory, and pushes them from there by the bulk-copy engine to every place that the row
// goes to, so a row is quantized once. Bytes over the link: codes and scales. Two meetings, as
// moe_push.cu. Arithmetic: docs/numerics.md, "Rows of experts".
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_codes.cuh"
#include "kernels/cuda/poison.cuh"

namespace zbccl::cuda {
namespace {

constexpr int kMostWarps = 14;
constexpr int kLeastWarps = 4;
constexpr int kBuffers = 2;                       // of codes, which turn about
constexpr int kPassElements = 512;                // that a warp has at once, 16 in each lane
constexpr size_t kCodeBytes = size_t{200} << 10;  // of a block

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

  using Reader = RowReader<kType, 8>;
  __device__ __forceinline__ Reader reader(int64_t token) const {
    return {args.x + token * args.x_stride, args.recv_row_bytes, lane, 32};
  }

  // What is loaded of a token while the one before is pushed.
  struct Ahead {
    uint32_t to;
    typename Reader::Loaded loaded;
  };
  __device__ __forceinline__ void look_ahead(Ahead* ahead, int64_t token) const {
    ahead->to = target(token);
    if (token < args.tokens) reader(token).load(&ahead->loaded, 0);
  }

  // A row's codes, ready to be pushed, and its scales.
  __device__ __forceinline__ void quantize(int64_t token, const typename Reader::Loaded& loaded,
                                           char* codes) const {
    if (args.quant == MoeQuant::kInt8) {
      quantize_int8(reader(token), loaded, codes, scales,
                    [](uint32_t most) { return __reduce_max_sync(kWholeWarp, most); });
    } else {
      quantize_fp8(reader(token), loaded, args.quant != MoeQuant::kFp8, codes, scales);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
  }

  // The first row, while the ranks meet.
  __device__ __forceinline__ void begin() const {
    Ahead first;
    look_ahead(&first, warp);
    if (__any_sync(kWholeWarp, first.to != kNoTarget) != 0) quantize(warp, first.loaded, buffers);
  }

  // After begin().
  __device__ __forceinline__ void run() const {
    int pushed = 0;
    Ahead here;
    here.to = target(warp);
    for (int64_t token = warp; token < args.tokens; token += warps) {
      const uint32_t to = here.to;
      const bool goes = __any_sync(kWholeWarp, to != kNoTarget) != 0;
      char* const codes = buffers + pushed % kBuffers * buffer_bytes;
      if (goes && token != warp) {
        await_reads<kBuffers - 1>();  // what was sent from it
        __syncwarp();
        quantize(token, here.loaded, codes);
      }
      look_ahead(&here, token + warps);
      if (!goes) continue;
      ++pushed;
      push(static_cast<int>(token), to, codes);
    }
    finish_pushes();
  }

  __device__ __forceinline__ void push(int token, uint32_t to, const char* codes) const {
    const int hidden = args.recv_row_bytes;
    const bool engine = to != kNoTarget && by_engine(shared.outputs[target_rank(to)], hidden);
    if (engine) {
      const MoeOutputs& out = shared.outputs[target_rank(to)];
      push_bytes(out.rows + target_row(to) * out.stride, codes, static_cast<uint32_t>(hidden));
    }
    commit_pushes();
    store_codes(shared, engine ? kNoTarget : to, codes, hidden, lane);
    put_scales(shared, to, args.num_scales, lane,
               [&](int s) { return scale_word(args, scales, s); });
    put_notes(args, shared, token, to, lane);
    __syncwarp();
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
