// Dispatch of rows as they are. Each row is read once, into shared memory by the bulk-copy engine,
// and pushed from there to every place that it goes to. Two meetings: the entry, which says where
// everyone's outputs are, and the exit. A warp has a ring of pieces of its own, its lanes have one
// target each, so that 8 blocks fill the link (docs/performance-gpu.md).
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_outputs.cuh"
#include "kernels/cuda/poison.cuh"

namespace zbccl::cuda {
namespace {

constexpr int kMostWarps = 14;
constexpr int kLeastWarps = 4;
constexpr int kMostStages = 4;
constexpr size_t kRingBytes = size_t{200} << 10;  // of a block
constexpr int kWholeRow = 16 << 10;               // longer rows go in pieces
constexpr int kLine = 128;

// How rows go through shared memory.
struct Ring {
  int32_t piece;   // bytes, at most, that move at once
  int32_t pieces;  // of a row
  int32_t stages;
};

__device__ __forceinline__ void pull_bytes(void* to, const char* from, uint32_t bytes,
                                           uint64_t* arrived) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrived)),
      "r"(bytes)
      : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(arrived))
      : "memory");
}
__device__ __forceinline__ void await_bytes(uint64_t* arrived, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, "
        "p; }"
        : "=r"(done)
        : "r"(shared_address(arrived)), "r"(parity)
        : "memory");
  }
}

// One warp's pieces: number `warp` of `warps` of the grid. `ring` and `arrived` are its own.
struct Pusher {
  const DispatchArgs& args;
  const DispatchShared& shared;
  const Ring& ring;
  char* stages;
  uint64_t* arrived;
  int warp;
  int warps;
  int lane;

  struct Item {
    int token;
    int64_t at;  // in the row
    uint32_t bytes;
  };
  __device__ __forceinline__ Item item(int64_t turn) const {
    const int64_t index = warp + turn * warps;
    const auto token = static_cast<int>(index / ring.pieces);
    const int64_t at = (index - static_cast<int64_t>(token) * ring.pieces) * ring.piece;
    return {token, at,
            static_cast<uint32_t>(min(static_cast<int64_t>(ring.piece), args.row_bytes - at))};
  }
  __device__ __forceinline__ uint32_t target(int token) const {
    if (lane >= args.tables.width) return kNoTarget;
    return args.tables.targets[static_cast<int64_t>(token) * args.tables.width + lane];
  }
  __device__ __forceinline__ char* stage(int64_t turn) const {
    return stages + static_cast<int>(turn % ring.stages) * ring.piece;
  }
  __device__ __forceinline__ void load(int64_t turn) const {
    if (lane != 0) return;
    const Item it = item(turn);
    pull_bytes(stage(turn), args.x + it.token * args.x_stride + it.at, it.bytes,
               &arrived[turn % ring.stages]);
  }

  __device__ __forceinline__ int64_t count() const {
    const int64_t items = static_cast<int64_t>(args.tokens) * ring.pieces;
    return items > warp ? (items - warp + warps - 1) / warps : 0;
  }

  // The first pieces come while the ranks meet.
  __device__ __forceinline__ void begin_loads() const {
    for (int64_t k = 0; k < count() && k < ring.stages - 1; ++k) load(k);
  }
  // In the place of run(): shared memory is not left while something still comes to it.
  __device__ __forceinline__ void drain() const {
    for (int64_t k = 0; k < count() && k < ring.stages - 1; ++k) await_bytes(&arrived[k], 0);
  }

  // After begin_loads().
  __device__ __forceinline__ void run() const {
    const int64_t mine = count();
    const int ahead = ring.stages - 1;
    uint32_t next = mine > 0 ? target(item(0).token) : kNoTarget;
    for (int64_t k = 0; k < mine; ++k) {
      const Item it = item(k);
      const uint32_t to = next;
      if (k + 1 < mine) next = target(item(k + 1).token);
      await_bytes(&arrived[k % ring.stages], static_cast<uint32_t>(k / ring.stages & 1));
      if (to != kNoTarget) {
        const MoeOutputs& out = shared.outputs[target_rank(to)];
        push_bytes(out.rows + target_row(to) * out.stride + it.at, stage(k), it.bytes);
      }
      commit_pushes();
      if (it.at == 0) notes(it.token, to);
      if (k + ahead >= mine) continue;
      // The stage that is loaded next was sent from one turn ago.
      await_reads<1>();
      __syncwarp();
      load(k + ahead);
    }
    finish_pushes();
  }

  __device__ __forceinline__ void notes(int token, uint32_t to) const {
    put_notes(args, shared, token, to, lane);
    if (args.num_scales == 0) return;
    const uint32_t* const row = args.scales + token * args.scale_strides[0];
    put_scales(shared, to, args.num_scales, lane,
               [&](int s) { return row[s * args.scale_strides[1]]; });
  }
};

__global__ void __launch_bounds__(kMostWarps * 32)
    dispatch_rows(const __grid_constant__ TeamView view, const __grid_constant__ DispatchArgs args,
                  const Ring ring) {
  extern __shared__ __align__(128) char stages[];
  __shared__ __align__(8) uint64_t arrived[kMostWarps * kMostStages];
  __shared__ DispatchShared shared;
  if (args.phase == MoePhase::kReceive) return receive(view, args);
  const Turn turn = begin(view);
  if (turn.ok) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    uint64_t* const mine = arrived + warp * kMostStages;
    if (lane < ring.stages) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&mine[lane])));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncwarp();
    // Neighbouring rows go through different blocks.
    const int number = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
    const int warps = static_cast<int>(gridDim.x * blockDim.x) / 32;
    const Pusher pusher = {args, shared, ring,  stages + warp * ring.stages * ring.piece,
                           mine, number, warps, lane};
    pusher.begin_loads();
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (meet_outputs(view, args, turn, &shared)) {
      pusher.run();
      fill_gaps(view, args, number, warps, lane);
      end_dispatch(view, args, turn);
    } else {
      pusher.drain();
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

int round_up(int value, int to) { return (value + to - 1) / to * to; }

}  // namespace

static cudaError_t launch_rows(const TeamView& view, const DispatchArgs& args,
                               const LaunchShape& shape) {
  Ring ring = {};
  if (args.phase == MoePhase::kReceive) {
    return start(dispatch_rows, receiver_shape(shape), 0, view, args, ring);
  }
  ring.pieces = (args.row_bytes + kWholeRow - 1) / kWholeRow;
  ring.piece = round_up((args.row_bytes + ring.pieces - 1) / ring.pieces, kLine);
  ring.pieces = (args.row_bytes + ring.piece - 1) / ring.piece;
  // Measured: 7 warps and 4 stages for rows of 7 KB, 7 and 2 for those of 14 KB.
  ring.stages = ring.piece <= 8 << 10 ? 4 : ring.piece <= 10 << 10 ? 3 : 2;
  LaunchShape filled = shape;
  const size_t each = static_cast<size_t>(ring.stages) * static_cast<size_t>(ring.piece);
  // Few rows are spread over many blocks.
  const int most = args.layout == MoeLayout::kExpertMasked ? kLeastWarps : kMostWarps;
  filled.threads = 32 * std::clamp(static_cast<int>(kRingBytes / each), kLeastWarps, most);
  const size_t bytes = each * static_cast<size_t>(filled.threads / 32);
  return start(dispatch_rows, filled, bytes, view, args, ring);
}

cudaError_t launch_moe_quantize(const TeamView& view, const DispatchArgs& args, DataType type,
                                const LaunchShape& shape);

cudaError_t launch_moe_dispatch(const TeamView& view, const DispatchArgs& args, DataType type,
                                const LaunchShape& shape) {
  return args.quant == MoeQuant::kNone ? launch_rows(view, args, shape)
                                       : launch_moe_quantize(view, args, type, shape);
}

static cudaError_t load_moe_push() {
  return cudaFuncSetAttribute(dispatch_rows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(kRingBytes));
}

cudaError_t load_moe_route();
cudaError_t load_moe_quantize();
cudaError_t load_moe_combine();
cudaError_t load_moe_low_latency();

cudaError_t load_moe() {
  for (const auto load :
       {load_moe_route, load_moe_push, load_moe_quantize, load_moe_low_latency, load_moe_combine}) {
    if (const cudaError_t code = load(); code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
