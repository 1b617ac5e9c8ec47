// Takes a team back into use after its ranks' calls did not agree. By then every kernel of a rank
// has returned at once, so that their epochs differ, and what peers stored lies in landing memory.
// Two meetings: nobody clears his memory before nobody writes to it, and nobody goes on before all
// memory is clear. One block: there is no hurry.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/recover.h"

namespace zbccl::cuda {
namespace {

constexpr int kThreads = 512;

__device__ __forceinline__ void replace(uint32_t* failed, uint32_t word) {
  const uint32_t old = load_relaxed(failed);
  if (old == 0 || is_mismatch(old)) atomicCAS_system(failed, old, word);
}

// The ranks have failed already; this is a failure that they do not recover from.
__device__ __noinline__ void give_up(const TeamView& view, FailureKind kind, int rank,
                                     uint32_t generation, uint64_t seen) {
  const uint32_t who = static_cast<uint32_t>(rank + 1);
  const uint32_t word = static_cast<uint32_t>(kind) | who << 8 | kReported;
  uint32_t* const own = &view.control[view.rank]->failed;
  const uint32_t old = load_relaxed(own);
  if (!is_mismatch(old) || atomicCAS_system(own, old, word) != old) return;
  tell_host(view, kind, static_cast<uint32_t>(rank), kAtRecovery,
            view.control[view.rank]->progress[0].epoch, generation, seen, 0, nullptr, nullptr);
  const uint32_t to_peers = static_cast<uint32_t>(FailureKind::kPeerFailed) |
                            static_cast<uint32_t>(view.rank + 1) << 8 |
                            static_cast<uint32_t>(kind) << 16 | who << 24;
  for (int r = 0; r < view.nranks; ++r) {
    if (r != view.rank) replace(&view.control[r]->failed, to_peers);
  }
}

// Word `word` of what rank `rank` says of this generation.
__device__ __forceinline__ bool await_word(const TeamView& view, int rank, int word,
                                           uint32_t generation, uint32_t* value) {
  const Control* const own = view.control[view.rank];
  const uint64_t begin = nanoseconds();
  for (uint32_t looks = 1;; ++looks) {
    const uint64_t seen = load_acquire(&own->recoveries[rank][word]);
    *value = static_cast<uint32_t>(seen >> 32);
    if (static_cast<uint32_t>(seen) == generation) return true;
    if (view.nap_ns != 0) __nanosleep(view.nap_ns);
    if (looks % 128 != 0) continue;
    if (!is_mismatch(load_relaxed(&own->failed))) return false;  // aborted from outside
    if (*view.abort != 0) {
      give_up(view, FailureKind::kAborted, rank, generation, static_cast<uint32_t>(seen));
      return false;
    }
    if (nanoseconds() - begin < view.timeout_ns) continue;
    give_up(view, FailureKind::kTimeout, rank, generation, static_cast<uint32_t>(seen));
    return false;
  }
}

__device__ __forceinline__ void say(const TeamView& view, int rank, int word, uint32_t value,
                                    uint32_t generation) {
  store_release(&view.control[rank]->recoveries[view.rank][word],
                static_cast<uint64_t>(value) << 32 | generation);
}

__global__ void __launch_bounds__(kThreads)
    recover(const __grid_constant__ TeamView view, uint32_t generation) {
  __shared__ uint32_t epochs[kMaxRanks];
  __shared__ uint32_t messages[kMaxRanks];
  Control* const own = view.control[view.rank];
  const int tid = static_cast<int>(threadIdx.x);
  const bool peer = tid < view.nranks;
  const uint32_t failed = load_relaxed(&own->failed);
  if (static_cast<int32_t>(own->generation - generation) >= 0) return;
  if (__syncthreads_or(!is_mismatch(failed)) != 0) {
    if (tid == 0) (void)has_failed(view, own->progress[0].epoch);
    return;
  }
  uint32_t last = 0;
  for (int r = 0; r < view.nranks; ++r) {
    last = max(last, max(own->sent[0][r], own->received[0][r]));
  }
  bool alive = true;
  if (peer) {
    say(view, tid, 0, own->progress[0].epoch, generation);
    say(view, tid, 1, last, generation);
    alive = await_word(view, tid, 0, generation, &epochs[tid]) &&
            await_word(view, tid, 1, generation, &messages[tid]);
  }
  if (__syncthreads_and(alive) == 0) {
    if (tid == 0) (void)has_failed(view, own->progress[0].epoch);
    return;
  }

  // No kernel of any rank is under way.
  uint32_t epoch = epochs[0];
  uint32_t message = messages[0];
  for (int r = 1; r < view.nranks; ++r) {
    if (static_cast<int32_t>(epochs[r] - epoch) > 0) epoch = epochs[r];
    message = max(message, messages[r]);
  }
  char* const slots = poison_slot(view, view.rank, 0);
  const Pack poison = {{~0u, ~0u, ~0u, ~0u}};
  for (uint64_t at = threadIdx.x * uint64_t{kPackBytes}; at < kPoisonSlots * view.shape.slot_bytes;
       at += kThreads * uint64_t{kPackBytes}) {
    store_plain(slots + at, poison);
  }
  for (int b = tid; b < kMaxBlocks; b += kThreads) {
    own->progress[b] = {epoch, 0, 0, 0};
    for (int r = 0; r < kMaxRanks; ++r) own->sent[b][r] = own->received[b][r] = message;
  }
  if (tid == 0) {
    own->generation = generation;
    // Unless it was aborted meanwhile.
    alive = atomicCAS_system(&own->failed, failed, 0u) == failed;
  }
  if (__syncthreads_and(alive) == 0) {
    if (tid == 0) (void)has_failed(view, epoch);
    return;
  }
  if (peer) {
    say(view, tid, 2, 1, generation);
    Waiter waiter(view, epoch);
    for (;;) {
      const uint64_t seen = load_acquire(&own->recoveries[tid][2]);
      if (static_cast<uint32_t>(seen) == generation) break;
      if (!waiter.again(static_cast<uint32_t>(tid), kAtRecovery, generation,
                        static_cast<uint32_t>(seen))) {
        break;
      }
    }
  }
}

}  // namespace

cudaError_t launch_recover(const TeamView& view, uint32_t generation, cudaStream_t stream) {
  LaunchShape shape;
  shape.blocks = 1;
  shape.threads = kThreads;
  shape.stream = stream;
  shape.overlap = false;
  return start(recover, shape, 0, view, generation);
}

cudaError_t load_recover() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, recover);
}

}  // namespace zbccl::cuda
