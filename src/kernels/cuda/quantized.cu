// all_reduce by 8-bit codes. Bytes over the link: 2 (N-1)/N of the elements' number each way, and a
// scale of four bytes for each 128. Two flights without a flag, as reduce_two_shot.cu: codes to
// their owners, codes of the sums to everybody. A warp quantises 512 elements at a time; their
// four scales travel in a pack of their own. No word of codes or scales is poison.
#include "kernels/cuda/fused.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poison.cuh"
#include "kernels/cuda/quantize.cuh"

namespace zbccl::cuda {
namespace {

// A tile's place in a slot: the codes of all tiles, then the scales of all.
struct Slot {
  int64_t share;  // tiles of a rank
  int nranks;

  __device__ __forceinline__ int64_t all() const { return share * nranks; }
  __device__ __forceinline__ char* codes(char* slot, bool sums, int from, int64_t tile) const {
    return slot + ((sums ? all() : 0) + from * share + tile) * kTileCodePacks * kPackBytes;
  }
  __device__ __forceinline__ char* scales(char* slot, bool sums, int from, int64_t tile) const {
    return slot +
           (2 * all() * kTileCodePacks + (sums ? all() : 0) + from * share + tile) * kPackBytes;
  }
};

// A lane's part of a tile: the codes of 16 elements, and their group's scale.
struct Coded {
  Pack codes;
  uint32_t scale;
};

__device__ __forceinline__ bool has_poison(const Coded& v) {
  return v.codes.w[0] == kPoisonWord || v.codes.w[1] == kPoisonWord ||
         v.codes.w[2] == kPoisonWord || v.codes.w[3] == kPoisonWord || v.scale == kPoisonWord;
}

template <DataType kType, DataType kCode, int kTeam>
__global__ void __launch_bounds__(640, 1)
    quantized(const __grid_constant__ TeamView view, const __grid_constant__ QuantizedArgs args) {
  using Elements = Sixteen<kType>;
  using Groups = Quantizer<kCode == DataType::kE4m3 ? Code::kE4m3 : Code::kInt8>;
  constexpr int kRanks = kTeam != 0 ? kTeam : kMaxRanks;
  constexpr int kAtOnce = kTeam > 2 ? 4 : 2;  // ranks whose tiles a lane waits for together
  constexpr int kSize = kType == DataType::kF32 ? 4 : 2;
  __shared__ Entries entries;
  const Turn turn = begin(view);
  const int me = view.rank;
  const int nranks = kTeam != 0 ? kTeam : view.nranks;
  const Crew crew(nranks);
  const Span in(args.in.data, args.in.bytes);
  const Span out(args.out.data, args.in.bytes);
  const auto elements = static_cast<int64_t>(args.in.bytes / kSize);
  const Slot slot = {quantized_share(elements, nranks), nranks};
  const int64_t tiles = (elements + kTileElements - 1) / kTileElements;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto first = static_cast<int64_t>(crew.first / 32);  // this warp's tile of each share
  const auto stride = static_cast<int64_t>(crew.stride / 32);
  if (turn.ok) {
    char* const landed = poison_slot(view, me, turn.slot);
    Waiter waiter(view, turn.epoch);

    const auto present = [&](int k, int64_t i) { return k * slot.share + i < tiles; };
    // This lane's packs of tile `tile` of the buffers; zeros beyond their end.
    const auto pack_of = [&](int64_t tile, int p) {
      return static_cast<uint64_t>((tile * 32 + lane) * Elements::kPacks + p);
    };
    const auto load = [&](int64_t tile, float(&v)[16]) {
      typename Elements::Packs packs;
#pragma unroll
      for (int p = 0; p < Elements::kPacks; ++p) {
        const uint64_t i = pack_of(tile, p);
        packs.pack[p] = i < in.packs() ? in.load(i) : Pack{};
      }
      Elements::widen(v, packs);
    };
    const auto store = [&](int64_t tile, const float(&v)[16]) {
      const typename Elements::Packs packs = Elements::narrow(v);
#pragma unroll
      for (int p = 0; p < Elements::kPacks; ++p) {
        const uint64_t i = pack_of(tile, p);
        if (i < out.packs()) out.store(i, packs.pack[p]);
      }
    };
    // The whole warp, as what follows.
    const auto encode = [&](const float(&v)[16]) -> Coded {
      const typename Groups::Block block = Groups::quantize(v);
      return {block.codes, bits_of(block.scale)};
    };
    const auto decode = [&](const Coded& coded, float(&v)[16]) {
      Groups::dequantize(v, coded.codes, float_of(coded.scale));
    };
    const auto give = [&](char* to, bool sums, int from, int64_t tile, const Coded& coded) {
      store_volatile(slot.codes(to, sums, from, tile) + lane * kPackBytes, coded.codes);
      if (lane % Groups::kThreads == 0) {
        auto* const scales = reinterpret_cast<uint32_t*>(slot.scales(to, sums, from, tile));
        store_relaxed(scales + lane / Groups::kThreads, coded.scale);
      }
    };
    const auto look = [&](bool sums, int from, int64_t tile) -> Coded {
      const auto* const scales =
          reinterpret_cast<const uint32_t*>(slot.scales(landed, sums, from, tile));
      return {load_volatile(slot.codes(landed, sums, from, tile) + lane * kPackBytes),
              load_relaxed(scales + lane / Groups::kThreads)};
    };
    // Waits for tile i of the ranks [first, last) without `skip`, all at once. The same answer in
    // the whole warp.
    const auto await = [&](bool sums, int64_t i, int from, int last, int skip,
                           Coded(&coded)[kAtOnce]) {
      bool came = true;
      for (;;) {
        int missing = -1;
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          if (from + u < last && from + u != skip) coded[u] = look(sums, from + u, i);
        }
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          if (from + u < last && from + u != skip && has_poison(coded[u])) missing = from + u;
        }
        if (missing < 0) break;
        came = waiter.again(static_cast<uint32_t>(missing), kAtData, 0, 0);
        if (!came) break;
      }
      return __all_sync(kFullWarp, came) != 0;
    };
    // The sum of tile i of this rank's share.
    const auto add_up = [&](int64_t i, float(&sum)[16]) {
#pragma unroll(kTeam != 0 ? kRanks / kAtOnce : 1)
      for (int from = 0; from < kRanks; from += kAtOnce) {
        if (from >= nranks) break;
        Coded coded[kAtOnce];
        if (!await(false, i, from, nranks, -1, coded)) return false;
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          if (from + u >= nranks) break;
          float v[16];
          decode(coded[u], v);
#pragma unroll
          for (int e = 0; e < 16; ++e) sum[e] = from + u == 0 ? v[e] : add(sum[e], v[e]);
        }
      }
      return true;
    };

    int wrong = 0;
    bool alive = true;
    float sum[16];
    if (crew.works) {
      for (int64_t i = first; i < slot.share; i += stride) {
#pragma unroll(kTeam != 0 ? kTeam : 1)
        for (int k = 0; k < kRanks; ++k) {
          if (k >= nranks || !present(k, i)) break;
          float v[16];
          load(k * slot.share + i, v);
          give(poison_slot(view, k, turn.slot), false, me, i, encode(v));
        }
      }
      if (first < slot.share && present(me, first)) alive = add_up(first, sum);
    } else {
      if (blockIdx.x == 0) send_entry(view, args.call, turn, crew.thread);
      wrong = watch_entry<false>(view, args.call, turn, &entries, crew.thread);
    }
    if (agree(view, args.call, turn, entries, wrong) && crew.works) {
      for (int64_t i = first; alive && i < slot.share && present(me, i); i += stride) {
        if (i != first) alive = add_up(i, sum);
        if (!alive) break;
        const Coded coded = encode(sum);
#pragma unroll(kTeam != 0 ? kTeam : 1)
        for (int k = 0; k < kRanks; ++k) {
          if (k < nranks && k != me) give(poison_slot(view, k, turn.slot), true, me, i, coded);
        }
        float v[16];
        decode(coded, v);
        store(me * slot.share + i, v);
      }
      clear_previous_slot(view, turn, crew.first, crew.stride);
      for (int64_t i = first; alive && i < slot.share; i += stride) {
        // The last shares may be short of tiles, and stay poison there.
        int last = nranks;
        while (last > 0 && !present(last - 1, i)) --last;
#pragma unroll(kTeam != 0 ? kRanks / kAtOnce : 1)
        for (int from = 0; from < kRanks; from += kAtOnce) {
          if (from >= last) break;
          Coded coded[kAtOnce];
          alive = await(true, i, from, last, me, coded);
          if (!alive) break;
#pragma unroll
          for (int u = 0; u < kAtOnce; ++u) {
            if (from + u >= last || from + u == me) continue;
            float v[16];
            decode(coded[u], v);
            store((from + u) * slot.share + i, v);
          }
        }
      }
    }
  }
  __syncthreads();
  end(view, turn, static_cast<uint32_t>(quantized_packs(slot.share, nranks)));
}

// Calls use.template operator()<type, code, ranks>().
template <typename Use>
cudaError_t choose_quantized(DataType type, DataType code, int nranks, Use&& use) {
  const auto for_code = [&]<DataType kType, int kTeam>() {
    if (code == DataType::kE4m3) {
      return use.template operator()<kType, DataType::kE4m3, kTeam>();
    }
    return use.template operator()<kType, DataType::kI8, kTeam>();
  };
  if (type == DataType::kF32) return for_code.template operator()<DataType::kF32, 0>();
  if (type == DataType::kF16) return for_code.template operator()<DataType::kF16, 0>();
  if (type != DataType::kBf16) return cudaErrorInvalidValue;
  switch (nranks) {
    case 2: return for_code.template operator()<DataType::kBf16, 2>();
    case 4: return for_code.template operator()<DataType::kBf16, 4>();
    case 8: return for_code.template operator()<DataType::kBf16, 8>();
    default: return for_code.template operator()<DataType::kBf16, 0>();
  }
}

}  // namespace

cudaError_t launch_quantized(const TeamView& view, const QuantizedArgs& args, DataType type,
                             DataType code, const LaunchShape& shape) {
  LaunchShape crewed = shape;
  crewed.threads += watchers(view.nranks);
  return choose_quantized(type, code, view.nranks,
                          [&]<DataType kType, DataType kCode, int kTeam>() {
                            return start(quantized<kType, kCode, kTeam>, crewed, 0, view, args);
                          });
}

cudaError_t load_quantized() {
  cudaFuncAttributes attributes;
  for (const DataType type : {DataType::kF32, DataType::kF16, DataType::kBf16}) {
    for (const DataType code : {DataType::kE4m3, DataType::kI8}) {
      for (const int ranks : {2, 4, 8, 3}) {
        const cudaError_t error =
            choose_quantized(type, code, ranks, [&]<DataType kType, DataType kCode, int kTeam>() {
              return cudaFuncGetAttributes(&attributes, quantized<kType, kCode, kTeam>);
            });
        if (error != cudaSuccess) return error;
      }
    }
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
