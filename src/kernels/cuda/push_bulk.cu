// Pushes by the bulk-copy engine: one thread of each block moves tiles through a ring in shared
// memory, so that a few blocks fill the link. Tiles of 32 KB: smaller ones do not
// (docs/performance.md). What is not aligned to 16 bytes is stored by the threads instead.
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/push.h"

namespace zbccl::cuda {
namespace {

constexpr uint32_t kTileBytes = 32 << 10;
constexpr int kRing = 6;   // tiles in shared memory
constexpr int kAhead = 3;  // of them being loaded
constexpr size_t kSharedBytes = size_t{kTileBytes} * kRing;

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void load_tile(void* tile, const char* from, uint32_t bytes,
                                          uint64_t* arrived) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrived)),
      "r"(bytes)
      : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(tile)),
      "l"(from), "r"(bytes), "r"(shared_address(arrived))
      : "memory");
}
__device__ __forceinline__ void await_tile(uint64_t* arrived, uint32_t parity) {
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
__device__ __forceinline__ void store_tile(char* to, const void* tile, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(tile)), "r"(bytes)
               : "memory");
}

// The tiles of this block: one source block for each peer in turn, or one for all.
struct Plan {
  const TeamView& view;
  const PushArgs& args;
  const Entries& entries;
  int blocks;  // source blocks

  struct Item {
    int k;
    uint64_t at;
    uint32_t bytes;
  };
  __device__ __forceinline__ uint64_t count() const {
    const uint64_t tiles = (args.longest + kTileBytes - 1) / kTileBytes;
    const uint64_t items = tiles * blocks;
    return items > blockIdx.x ? (items - blockIdx.x + gridDim.x - 1) / gridDim.x : 0;
  }
  __device__ __forceinline__ Item item(uint64_t turn) const {
    const uint64_t index = blockIdx.x + turn * gridDim.x;
    Item it;
    it.k =
        blocks == 1 ? view.rank : (view.rank + 1 + static_cast<int>(index % blocks)) % view.nranks;
    it.at = index / blocks * kTileBytes;
    const uint64_t whole = args.bytes[it.k] & ~uint64_t{kPackBytes - 1};
    it.bytes = it.at < whole
                   ? static_cast<uint32_t>(min(static_cast<uint64_t>(kTileBytes), whole - it.at))
                   : 0;
    return it;
  }
  __device__ __forceinline__ const char* source(int k) const { return args.in.data + args.from[k]; }
  __device__ __forceinline__ char* target(int k) const {
    return k == view.rank ? args.out.data + args.own_to : entries.out[k];
  }
  __device__ __forceinline__ bool by_bulk(int k) const {
    return ((reinterpret_cast<uint64_t>(source(k)) | reinterpret_cast<uint64_t>(target(k))) &
            (kPackBytes - 1)) == 0;
  }
  __device__ __forceinline__ void store(const Item& it, const void* tile) const {
    for (int i = 1; i <= view.nranks; ++i) {
      const int k = blocks == 1 ? (view.rank + i) % view.nranks : it.k;
      if (by_bulk(k) && target(k) != source(k)) store_tile(target(k) + it.at, tile, it.bytes);
      if (blocks != 1) break;
    }
  }
};

// One thread.
__device__ __forceinline__ void move_tiles(const Plan& plan, char* ring, uint64_t* arrived) {
  for (int i = 0; i < kRing; ++i) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&arrived[i])));
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  const uint64_t count = plan.count();
  const auto fetch = [&](uint64_t turn) {
    const Plan::Item it = plan.item(turn);
    if (it.bytes == 0 || (reinterpret_cast<uint64_t>(plan.source(it.k)) & (kPackBytes - 1)) != 0) {
      // The barrier's phase goes on all the same.
      asm volatile(
          "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&arrived[turn % kRing]))
          : "memory");
      return;
    }
    load_tile(ring + turn % kRing * kTileBytes, plan.source(it.k) + it.at, it.bytes,
              &arrived[turn % kRing]);
  };
  for (uint64_t t = 0; t < count && t < kAhead; ++t) fetch(t);
  for (uint64_t t = 0; t < count; ++t) {
    await_tile(&arrived[t % kRing], static_cast<uint32_t>(t / kRing & 1));
    const Plan::Item it = plan.item(t);
    if (it.bytes != 0) plan.store(it, ring + t % kRing * kTileBytes);
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    if (t + kAhead < count) {
      // The stores out of the tile that is loaded next have read it.
      asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kRing - kAhead - 1) : "memory");
      fetch(t + kAhead);
    }
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}

// What the engine does not take: other alignments, and the last bytes. The whole block.
__device__ __forceinline__ void store_rest(const Plan& plan) {
  constexpr uint64_t kPiece = 16 << 10;
  const int nranks = plan.view.nranks;
  for (int i = 1; i <= nranks; ++i) {
    const int k = (plan.view.rank + i) % nranks;
    if (plan.source(k) == plan.target(k)) continue;
    const uint64_t bytes = plan.args.bytes[k];
    const uint64_t done = plan.by_bulk(k) ? bytes & ~uint64_t{kPackBytes - 1} : 0;
    for (uint64_t at = done + blockIdx.x * kPiece; at < bytes; at += gridDim.x * kPiece) {
      copy_tile<4>(plan.target(k) + at, plan.source(k) + at, min(kPiece, bytes - at));
    }
  }
}

__global__ void __launch_bounds__(256)
    push_bulk(const __grid_constant__ TeamView view, const __grid_constant__ PushArgs args) {
  extern __shared__ __align__(128) char ring[];
  __shared__ __align__(8) uint64_t arrived[kRing];
  __shared__ Entries entries;
  const Turn turn = begin(view);
  if (turn.ok) {
    if (blockIdx.x == 0) send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    clear_previous_slot(view, turn, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
    if (check_entry(view, args.call, turn, &entries)) {
      find_buffers(view, &entries);
      const Plan plan = {view, args, entries, args.same_source ? 1 : view.nranks};
      // Else the wait at the exit ends with the news.
      if (tallies_agree(view, entries)) {
        if (threadIdx.x == 0) move_tiles(plan, ring, arrived);
        store_rest(plan);
      }
      meet_at_exit(view, turn);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

}  // namespace

cudaError_t launch_push_bulk(const TeamView& view, const PushArgs& args, const LaunchShape& shape) {
  return start(push_bulk, shape, kSharedBytes, view, args);
}

cudaError_t load_push_bulk() {
  return cudaFuncSetAttribute(push_bulk, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(kSharedBytes));
}

}  // namespace zbccl::cuda
