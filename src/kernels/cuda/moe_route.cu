// Route: how many rows go where, told to everyone, and from that the place of every row. Three
// kernels, since a count is known only when all tokens have been looked at:
//
//   count     up to 16 blocks, a chunk of tokens each: slots for each expert, tokens for each rank
//   exchange  one block: the entry; eight bytes for each expert, rank and peer over the link; the
//             table of all ranks; by prefix sums where each rank's rows begin
//   place     as count: the place of each row, in the order of tokens and slots
//
// Few tokens go through all three in one kernel of one block, which is shorter by two launches.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_exchange.cuh"
#include "kernels/cuda/moe_places.cuh"

namespace zbccl::cuda {
namespace {

constexpr int kExchangeThreads = 1024;

__device__ __forceinline__ Chunk this_chunk() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)};
}

__global__ void __launch_bounds__(256)
    count(const __grid_constant__ RouteArgs args, const int32_t nranks) {
  extern __shared__ int32_t counts[];  // moe_words
  await_predecessor();
  count_tokens(args, nranks, this_chunk(), counts);
  keep_counts(args, nranks, static_cast<int>(blockIdx.x), counts);
}

__global__ void __launch_bounds__(kExchangeThreads)
    exchange(const __grid_constant__ TeamView view, const __grid_constant__ RouteArgs args,
             const int32_t chunks) {
  __shared__ ExchangeShared shared;
  const Turn turn = begin(view);
  if (turn.ok) (void)exchange_counts(view, args, turn, chunks, &shared);
  __syncthreads();
  end(view, turn, 0);
}

__global__ void __launch_bounds__(256)
    place(const __grid_constant__ RouteArgs args, const int32_t nranks) {
  extern __shared__ int32_t next[];  // [warps, keys]
  await_predecessor();
  place_all(args, nranks, this_chunk(), next);
}

// All of it, where tokens are few.
__global__ void __launch_bounds__(kExchangeThreads)
    route_at_once(const __grid_constant__ TeamView view, const __grid_constant__ RouteArgs args) {
  extern __shared__ int32_t counters[];  // moe_words, then [warps, keys]
  __shared__ ExchangeShared shared;
  const Turn turn = begin(view);
  if (turn.ok) {
    count_tokens(args, view.nranks, {0, 1}, counters);
    keep_counts(args, view.nranks, 0, counters);
    if (exchange_counts(view, args, turn, 1, &shared)) {
      __syncthreads();
      place_all(args, view.nranks, {0, 1}, counters);
    }
  }
  __syncthreads();
  end(view, turn, 0);
}

constexpr int kMostWarps = 8;
constexpr size_t kCounterBytes = size_t{kMostMoeExperts} * sizeof(int32_t);
constexpr size_t kMostSharedBytes = size_t{46} << 10;  // without asking for more
constexpr int64_t kFewSlots = 8192;

// As many warps as have room for a counter of each expert.
int warps_for(int experts) {
  const auto each = static_cast<size_t>(experts) * sizeof(int32_t);
  return static_cast<int>(std::clamp<size_t>(kCounterBytes / each, 1, kMostWarps));
}

}  // namespace

cudaError_t launch_moe_route(const TeamView& view, const RouteArgs& args, cudaStream_t stream) {
  const int experts = args.moe.experts;
  const int keys = args.layout == MoeLayout::kRankMajor ? view.nranks : experts;
  const size_t words = static_cast<size_t>(moe_words(experts, view.nranks)) * sizeof(int32_t);
  const size_t counters =
      static_cast<size_t>(kExchangeThreads / 32) * static_cast<size_t>(keys) * sizeof(int32_t);
  const LaunchShape single = {1, kExchangeThreads, stream, true};
  const size_t at_once = std::max(words, counters);
  if (int64_t{args.tokens} * args.topk <= kFewSlots && at_once <= kMostSharedBytes) {
    return start(route_at_once, single, at_once, view, args);
  }
  const int warps = warps_for(experts);
  // Of 32 tokens a warp at least.
  const int chunks = std::min((args.tokens + warps * 32 - 1) / (warps * 32), kRouteBlocks);
  const LaunchShape chunked = {chunks, warps * 32, stream, true};
  if (chunks > 0) {
    const cudaError_t code = start(count, chunked, words, args, view.nranks);
    if (code != cudaSuccess) return code;
  }
  const cudaError_t code = start(exchange, single, 0, view, args, chunks);
  if (code != cudaSuccess || chunks == 0) return code;
  return start(place, chunked,
               static_cast<size_t>(warps) * static_cast<size_t>(keys) * sizeof(int32_t), args,
               view.nranks);
}

cudaError_t load_moe_route() {
  cudaFuncAttributes attributes;
  for (const auto code :
       {cudaFuncGetAttributes(&attributes, count), cudaFuncGetAttributes(&attributes, exchange),
        cudaFuncGetAttributes(&attributes, place),
        cudaFuncGetAttributes(&attributes, route_at_once)}) {
    if (code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
