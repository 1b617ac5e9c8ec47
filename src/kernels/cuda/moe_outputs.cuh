// The outputs of a dispatch: where everyone's are, what goes with each row, and what no token
// fills. Stores into peers' memory are plain; the exit of the operation orders them.
#pragma once

#include "kernels/cuda/moe_board.cuh"

namespace zbccl::cuda {

inline constexpr uint32_t kWholeWarp = 0xFFFFFFFFU;

// What a block keeps in shared memory of everyone's calls.
struct DispatchShared {
  Entries entries;
  MoeNotes notes[kMaxRanks];
  MoeOutputs outputs[kMaxRanks];
  bool slots_wanted;  // somebody asks for the slots of its rows
};

__device__ __forceinline__ int target_rank(uint32_t target) { return target >> kTargetRowBits; }
__device__ __forceinline__ int64_t target_row(uint32_t target) {
  return target & ((1U << kTargetRowBits) - 1);
}

__device__ __forceinline__ MoeOutputs outputs_of(const TeamView& view, const DispatchShared& shared,
                                                 int rank) {
  const MoeNotes& notes = shared.notes[rank];
  const auto array = [&](int place) { return noticed_array(view, notes, rank, place); };
  MoeOutputs out;
  out.rows = resolve(view, rank, shared.entries.words[rank][6], shared.entries.words[rank][7]);
  out.stride = noticed_long(notes, kNoticeStride);
  out.scales = reinterpret_cast<uint32_t*>(array(kPlaceScales));
  for (int i = 0; i < 3; ++i) {
    out.scale_strides[i] = noticed_long(notes, kNoticeScaleStrides + 2 * i);
  }
  out.capacity = static_cast<int32_t>(notes.word[kNoticeCapacity]);
  out.topk_idx = array(kPlaceTopkIdx);
  out.topk_weights = reinterpret_cast<float*>(array(kPlaceTopkWeights));
  out.row_weights = reinterpret_cast<float*>(array(kPlaceRowWeights));
  out.src_idx = reinterpret_cast<int32_t*>(array(kPlaceSrcIdx));
  return out;
}

// Everyone's outputs. The whole block; false if the calls do not agree or a rank does not come.
__device__ __forceinline__ bool await_outputs(const TeamView& view, const DispatchArgs& args,
                                              const Turn& turn, DispatchShared* shared) {
  if (!check_entry(view, args.call, turn, &shared->entries) ||
      !await_notices(view, args.moe, turn, shared->notes)) {
    return false;
  }
  const int lacks = lacking_weights(view, shared->notes);
  if (lacks >= 0) {
    if (threadIdx.x == 0) {
      fail(view, FailureKind::kMismatch, static_cast<uint32_t>(lacks), kAtData, turn.epoch, 0, 0);
    }
    return false;
  }
  const int r = static_cast<int>(threadIdx.x);
  if (r < view.nranks) {
    shared->outputs[r] = r == view.rank ? args.own : outputs_of(view, *shared, r);
  }
  if (r == 0) {
    bool wanted = false;
    for (int k = 0; k < view.nranks; ++k) {
      for (const int place : {kPlaceTopkIdx, kPlaceTopkWeights}) {
        const uint32_t segment = shared->notes[k].word[kNoticePlaces + 2 * place] >> 16;
        wanted = wanted || segment != kNoSegment;
      }
    }
    shared->slots_wanted = wanted;
  }
  __syncthreads();
  return true;
}

// The same with this rank's part in the meeting.
__device__ __forceinline__ bool meet_outputs(const TeamView& view, const DispatchArgs& args,
                                             const Turn& turn, DispatchShared* shared) {
  if (blockIdx.x == 0) {
    send_entry(view, args.call, turn, static_cast<int>(threadIdx.x));
    send_notice(view, args.moe, turn, args.notes);
  }
  return await_outputs(view, args, turn, shared);
}

__device__ __forceinline__ int64_t scale_offset(const MoeOutputs& out, int64_t row) {
  if (out.capacity == 0) return row * out.scale_strides[1];
  const auto expert = static_cast<uint32_t>(row) / static_cast<uint32_t>(out.capacity);
  return expert * out.scale_strides[0] +
         (row - static_cast<int64_t>(expert) * out.capacity) * out.scale_strides[1];
}

// --- what goes with a row; one warp, whose lanes have one target of the token each ---

// Scale `s` of the row to every target: value(s) gives it.
template <typename Value>
__device__ __forceinline__ void put_scales(const DispatchShared& shared, uint32_t target, int count,
                                           int lane, const Value& value) {
  const uint32_t all = __ballot_sync(kWholeWarp, target != kNoTarget);
  for (int first = 0; first < count; first += 32) {
    const int s = first + lane;
    const uint32_t scale = s < count ? value(s) : 0;
    for (uint32_t left = all; left != 0; left &= left - 1) {
      const uint32_t to = __shfl_sync(kWholeWarp, target, __ffs(static_cast<int>(left)) - 1);
      const MoeOutputs& out = shared.outputs[target_rank(to)];
      if (s < count) {
        out.scales[scale_offset(out, target_row(to)) + s * out.scale_strides[2]] = scale;
      }
    }
  }
}

__device__ __forceinline__ void put_index(const DispatchArgs& args, char* array, int64_t at,
                                          int32_t value) {
  if (args.wide) {
    reinterpret_cast<int64_t*>(array)[at] = value;
  } else {
    reinterpret_cast<int32_t*>(array)[at] = value;
  }
}

// RankMajor: the slots of the token, as the rank of each target has them.
__device__ __forceinline__ void put_slots(const DispatchArgs& args, const DispatchShared& shared,
                                          int token, uint32_t target, int lane) {
  const int64_t slot = static_cast<int64_t>(token) * args.topk + lane;
  const bool has = lane < args.topk;
  const int expert = has ? args.tables.experts[slot] : -1;
  const int rank = expert >= 0 ? args.moe.rank_of[expert] : -1;
  const int local = expert >= 0 ? args.moe.local_of[expert] : -1;
  const float weight = has && args.topk_weights != nullptr ? args.topk_weights[slot] : 0.0F;
  uint32_t left = __ballot_sync(kWholeWarp, target != kNoTarget);
  for (; left != 0; left &= left - 1) {
    const uint32_t to = __shfl_sync(kWholeWarp, target, __ffs(static_cast<int>(left)) - 1);
    const MoeOutputs& out = shared.outputs[target_rank(to)];
    if (!has) continue;
    const int64_t at = target_row(to) * args.topk + lane;
    const bool here = rank == target_rank(to);
    if (out.topk_idx != nullptr) put_index(args, out.topk_idx, at, here ? local : -1);
    if (out.topk_weights != nullptr) out.topk_weights[at] = here ? weight : 0.0F;
  }
}

__device__ __forceinline__ void put_notes(const DispatchArgs& args, const DispatchShared& shared,
                                          int token, uint32_t target, int lane) {
  if (target != kNoTarget) {
    const MoeOutputs& out = shared.outputs[target_rank(target)];
    const int64_t row = target_row(target);
    if (out.src_idx != nullptr) out.src_idx[row] = token;
    if (out.row_weights != nullptr) {
      out.row_weights[row] = args.topk_weights[static_cast<int64_t>(token) * args.topk + lane];
    }
  }
  if (shared.slots_wanted) put_slots(args, shared, token, target, lane);
}

// --- what no token fills, in this rank's outputs ---

__device__ __forceinline__ void zero_bytes(char* at, int64_t bytes, int lane) {
  const bool packs =
      ((reinterpret_cast<uint64_t>(at) | static_cast<uint64_t>(bytes)) & (kPackBytes - 1)) == 0;
  if (packs) {
    for (int64_t i = lane * kPackBytes; i < bytes; i += 32 * kPackBytes) {
      store_plain(at + i, Pack{});
    }
  } else {
    for (int64_t i = lane; i < bytes; i += 32) at[i] = 0;
  }
}

// One warp.
__device__ __forceinline__ void fill_row(const DispatchArgs& args, int64_t row, int lane) {
  const MoeOutputs& out = args.own;
  if (lane == 0) {
    if (out.src_idx != nullptr) out.src_idx[row] = -1;
    if (out.row_weights != nullptr) out.row_weights[row] = 0.0F;
  }
  if (lane < args.topk) {
    const int64_t at = row * args.topk + lane;
    if (out.topk_idx != nullptr) put_index(args, out.topk_idx, at, -1);
    if (out.topk_weights != nullptr) out.topk_weights[at] = 0.0F;
  }
  if (!args.zero_padding) return;
  zero_bytes(out.rows + row * out.stride, args.recv_row_bytes, lane);
  for (int s = lane; s < args.num_scales; s += 32) {
    out.scales[scale_offset(out, row) + s * out.scale_strides[2]] = 0;
  }
}

// By all warps of the grid, of which this is number `warp` of `warps`.
__device__ __forceinline__ void fill_gaps(const TeamView& view, const DispatchArgs& args, int warp,
                                          int warps, int lane) {
  const auto fill = [&](int64_t begin, int64_t end) {
    end = min(end, static_cast<int64_t>(args.allocated_rows));
    for (int64_t row = begin + warp; row < end; row += warps) fill_row(args, row, lane);
  };
  if (args.layout == MoeLayout::kRankMajor) {
    fill(args.tables.totals->num_rows, args.allocated_rows);
    return;
  }
  if (args.layout == MoeLayout::kExpertMasked && !args.zero_padding) return;
  const int count = args.moe.first_place[view.rank + 1] - args.moe.first_place[view.rank];
  const int32_t* const offsets = args.tables.expert_offsets;
  for (int e = 0; e < count; ++e) {
    fill(static_cast<int64_t>(offsets[e]) + args.tables.expert_counts[e], offsets[e + 1]);
  }
  fill(offsets[count], args.allocated_rows);
}

// --- copies by the bulk-copy engine ---

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// 16 bytes at least, and all aligned to that.
__device__ __forceinline__ void push_bytes(char* to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_pushes() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// All but the last kLeft groups of this thread have read what they send.
template <int kLeft>
__device__ __forceinline__ void await_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kLeft) : "memory");
}
// What this thread has pushed is written, and ordered like a store of its own.
__device__ __forceinline__ void finish_pushes() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}

__device__ __forceinline__ void end_dispatch(const TeamView& view, const DispatchArgs& args,
                                             const Turn& turn) {
  if (args.phase == MoePhase::kBoth) {
    meet_at_exit(view, turn);
    return;
  }
  leave(view, turn);  // receive() is the rest of the exit
  if (blockIdx.x == 0 && threadIdx.x == 0) *args.tables.sent_epoch = turn.epoch;
}

// Waits until every block of every rank has left the send phase. One block.
__device__ __forceinline__ void receive(const TeamView& view, const DispatchArgs& args) {
  await_predecessor();
  const uint32_t epoch = *args.tables.sent_epoch;
  Waiter waiter(view, epoch);
  for (int i = static_cast<int>(threadIdx.x); i < args.sent_blocks * view.nranks;
       i += static_cast<int>(blockDim.x)) {
    const int r = i % view.nranks;
    if (r == view.rank) continue;
    const uint32_t* const from = &view.control[view.rank]->exits[i / view.nranks][r];
    for (;;) {
      const uint32_t seen = load_acquire(from);
      if (static_cast<int32_t>(seen - epoch) >= 0) break;
      if (!waiter.again(static_cast<uint32_t>(r), kAtExit, epoch, seen)) return;
    }
  }
}
inline LaunchShape receiver_shape(const LaunchShape& shape) {
  return {1, 448, shape.stream, shape.overlap};
}

}  // namespace zbccl::cuda
