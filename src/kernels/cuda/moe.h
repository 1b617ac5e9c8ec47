// Launches of the kernels of dispatch and combine, and what they share with the host. The kernels
// are in moe_*.cu. Arguments are plain data, copied; each launch enqueues and returns the driver's
// answer.
#pragma once

#include "base/types.h"
#include "kernels/cuda/launch.h"

namespace zbccl::cuda {

// The numbers are those of zbcclMoeLayout_t.
enum class MoeLayout : int32_t { kRankMajor = 0, kExpertMajor = 1, kExpertMasked = 2 };

inline constexpr int kMostMoeExperts = 8192;

// Where a row goes: the rank, and the row in that rank's output.
inline constexpr uint32_t kNoTarget = ~0U;
inline constexpr int kTargetRowBits = 28;
inline constexpr int64_t kMostTargetRows = (int64_t{1} << kTargetRowBits) - 1;

// What a rank shows the others when it routes: how many of its slots name each expert, how many of
// its tokens go to each rank, and these.
enum MoeExtraWord { kWordCapacity = 0, kWordMask, kWordWrong, kMoeExtraWords };
#ifdef __CUDACC__
__host__ __device__
#endif
    inline constexpr int
    moe_words(int experts, int nranks) {
  return experts + nranks + kMoeExtraWords;
}

// What a rank shows the others of its arrays when it dispatches or combines, in words of 32 bits.
enum MoeNotice {
  kNoticePlaces = 0,                              // of five arrays, two words each
  kNoticeStride = 2 * 5,                          // of rows, bytes, two words
  kNoticeScaleStrides = kNoticeStride + 2,        // of experts, rows and scales, two words each
  kNoticeCapacity = kNoticeScaleStrides + 2 * 3,  // rows of an expert that is masked, or 0
  kNoticeFlags,
  kNoticeWords
};
enum MoePlace {
  kPlaceScales = 0,
  kPlaceTopkIdx,
  kPlaceTopkWeights,
  kPlaceRowWeights,
  kPlaceSrcIdx
};
// Of kNoticeFlags.
inline constexpr uint32_t kGivesWeights = 1;
inline constexpr uint32_t kNeedsWeights = 2;  // has tokens, or rows, whose weights others may want
inline constexpr uint32_t kWantsWeights = 4;
struct MoeNotes {
  uint32_t word[kNoticeWords] = {};
};

// Memory of a moe object on one GPU that its peers write: notices and words of every rank, by
// parity of the epoch, each word of 32 bits beside the epoch. Nothing else.
inline constexpr size_t moe_board_bytes(int experts, int nranks) {
  return sizeof(uint64_t) * 2 *
         (size_t{kMaxRanks} * kNoticeWords +
          static_cast<size_t>(nranks) * static_cast<size_t>(moe_words(experts, nranks)));
}

// A moe object as this rank's kernels see it. All but the boards is this rank's own.
struct MoeView {
  int32_t experts = 0;
  uint64_t* board[kMaxRanks] = {};
  const int32_t* rank_of = nullptr;   // [experts]
  const int32_t* local_of = nullptr;  // [experts]
  const int32_t* by_place = nullptr;  // [experts] in the order of their ranks, then numbers
  int32_t first_place[kMaxRanks + 1] = {};
  // Used between the kernels of one route.
  int32_t* chunk_counts = nullptr;  // [kRouteBlocks, moe_words]
  int32_t* starts = nullptr;        // [experts or ranks] this rank's first row there
  int32_t* limits = nullptr;        // [experts or ranks] rows from there on are left out
};
inline constexpr int kRouteBlocks = 16;

// What a route found out besides its tables.
struct MoeTotals {
  int32_t num_rows = 0;
  int32_t needed_capacity = 0;
  int32_t overflow = 0;
  int32_t failed = 0;  // kWrongIndex or kTooManyRows, | rank << 8
};
inline constexpr int32_t kWrongIndex = 1;
inline constexpr int32_t kTooManyRows = 2;

// What a handle keeps on the GPU. For this rank alone.
struct MoeTables {
  uint32_t* targets = nullptr;        // [tokens, width]
  int32_t width = 0;                  // slots; RankMajor: ranks
  int16_t* experts = nullptr;         // RankMajor: [tokens, slots]
  int32_t* words = nullptr;           // [ranks, moe_words], with those between masked ranks 0
  int32_t* expert_counts = nullptr;   // [local experts]
  int32_t* expert_offsets = nullptr;  // [local experts + 1]; not RankMajor
  MoeTotals* totals = nullptr;
  uint32_t* sent_epoch = nullptr;  // of the last send phase
};

struct RouteArgs {
  EntryCall call;
  MoeView moe;
  MoeTables tables;
  const void* topk_idx = nullptr;
  bool wide = false;  // indices of 64 bits
  int32_t tokens = 0;
  int32_t topk = 0;
  MoeLayout layout = MoeLayout::kRankMajor;
  int32_t alignment = 1;
  int32_t capacity = 0;  // 0: none
  uint32_t mask = 0;     // bits of the ranks that this one has masked
  // Optional results; the last three are host memory, `host_done` written last.
  int64_t* recv_ranges = nullptr;  // [local experts, ranks] first row << 32 | rows
  int32_t* recv_counts = nullptr;
  int64_t* recv_status = nullptr;
  int32_t* host_words = nullptr;
  MoeTotals* host_totals = nullptr;
  uint32_t* host_done = nullptr;
};
cudaError_t launch_moe_route(const TeamView& view, const RouteArgs& args, cudaStream_t stream);

// A rank's outputs as this GPU reaches them; optional ones are null.
struct MoeOutputs {
  char* rows = nullptr;
  int64_t stride = 0;  // bytes
  uint32_t* scales = nullptr;
  int64_t scale_strides[3] = {};  // of experts, rows and scales
  int32_t capacity = 0;           // rows of an expert; 0: rows are not grouped
  char* topk_idx = nullptr;
  float* topk_weights = nullptr;
  float* row_weights = nullptr;
  int32_t* src_idx = nullptr;
};

enum class MoeQuant : int32_t { kNone = 0, kFp8, kFp8Pow2, kFp8Ue8m0, kInt8 };  // zbcclMoeQuant_t

// kSend ends once this rank's rows are on their way, and kReceive, for which only the tables count,
// once everyone's are here.
enum class MoePhase : int32_t { kBoth = 0, kSend, kReceive };

struct DispatchArgs {
  EntryCall call;
  MoeView moe;
  MoeTables tables;
  MoeNotes notes;
  MoeOutputs own;
  const char* x = nullptr;
  int64_t x_stride = 0;   // bytes
  int32_t row_bytes = 0;  // of x
  int32_t recv_row_bytes = 0;
  const uint32_t* scales = nullptr;
  int64_t scale_strides[2] = {};  // of tokens and scales
  int32_t num_scales = 0;         // of an output row
  const float* topk_weights = nullptr;
  int32_t tokens = 0;
  int32_t topk = 0;
  bool wide = false;
  MoeLayout layout = MoeLayout::kRankMajor;
  MoeQuant quant = MoeQuant::kNone;
  // What no token fills.
  bool zero_padding = false;
  int32_t allocated_rows = 0;
  MoePhase phase = MoePhase::kBoth;
  int32_t sent_blocks = 0;  // kReceive: of the launch that sent
};
// Rows and strides are multiples of 16 bytes; those of codes of one. `type`: of x. `shape.threads`
// is chosen here, as in launch_moe_combine().
cudaError_t launch_moe_dispatch(const TeamView& view, const DispatchArgs& args, DataType type,
                                const LaunchShape& shape);
// Rows of x that a launch can quantize.
inline constexpr int kMostQuantizedHidden = 24576;

// A route and the dispatch that goes with it, in one kernel; the entry is `args.call`. Whether it
// can be is the same on every rank; ExpertMasked with a capacity only.
bool routes_and_pushes(const DispatchArgs& args, int nranks);
cudaError_t launch_moe_route_and_dispatch(const TeamView& view, const RouteArgs& route,
                                          const DispatchArgs& args, DataType type,
                                          const LaunchShape& shape);

struct CombineArgs {
  EntryCall call;
  MoeView moe;
  MoeTables tables;
  MoeNotes notes;
  const char* y = nullptr;
  int64_t y_stride = 0;
  const float* recv_weights = nullptr;  // of this rank's rows, [rows, topk]
  const float* weights = nullptr;       // [tokens, topk]
  const char* bias[2] = {};
  char* out = nullptr;
  int64_t out_stride = 0;
  float* combined_weights = nullptr;
  int32_t packs = 0;  // of a row
  int32_t tokens = 0;
  int32_t topk = 0;
  uint32_t mask = 0;  // bits of ranks whose rows are skipped
  bool pre_reduce = false;
};
cudaError_t launch_moe_combine(const TeamView& view, const CombineArgs& args, DataType type,
                               const LaunchShape& shape);

cudaError_t load_moe();

}  // namespace zbccl::cuda
