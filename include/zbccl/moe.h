/* zbccl: expert parallelism. Tokens go to the ranks that hold their experts (dispatch) and the
 * experts' results come back and are added up (combine), each row straight from where it lies to
 * where it belongs. docs/moe.md is the page of this capability.
 *
 *   zbcclMoeCreate    once: which rank holds which expert
 *   zbcclMoeRoute     for each batch: one exchange of counts; the handle knows every row's place
 *   zbcclMoeDispatch  any number of times with one handle
 *   zbcclMoeCombine   any number of times with one handle
 *
 * Conventions, besides those of zbccl.h:
 *  - T is this rank's num_tokens, K num_topk, H hidden, E num_experts, L this rank's number of
 *    experts, R the number of ranks. Matrices are row-major. Strides are in elements; 0 stands for
 *    rows (or scales) that lie one behind the other. Rows and indices may lie at any address,
 *    weights, scales and what is counted at multiples of their size.
 *  - Create, Route, Dispatch and Combine are operations of the communicator: called by every rank
 *    in the same order, also by one without tokens or experts, by one thread at a time, not in a
 *    group. `call` is as for every operation: NULL blocks; with `work` the call returns at once and
 *    the memory that its struct points at is used until the work is done (the struct itself is
 *    not); `max_blocks` limits the thread blocks on a device.
 *  - Wrong arguments and calls that differ between ranks give an error on every rank before any
 *    output is written; the communicator stays usable. On the ranks whose own arguments are right
 *    it is zbcclInvalidUsage and names the rank that is wrong. Only a handle that is NULL or
 *    destroyed is this rank's alone to hear of.
 *  - Host memory from zbcclMemAlloc is read by peers in place. Other host memory is read by
 *    cross-memory attach where the system allows it, else inputs are staged and counted. Peers
 *    never write to this rank's host memory: outputs may lie anywhere.
 *  - Device memory: a handle is on the communicator's GPU if the arrays of its Route are there, or
 *    if the rank gives none and `call.stream` is set (cudaStreamLegacy means the default stream).
 *    All arrays of its calls then lie there, rows at multiples of 16 bytes. Calls are enqueued on
 *    `call.stream` and return. Peers write to outputs, and read `y`, up to the end of the call on
 *    the stream; memory that they cannot reach is staged and counted. Wrong arguments are an error
 *    of this rank alone, and nothing is enqueued; calls that differ between ranks end the use of
 *    device memory, as with every operation. What needs to know how many rows come (GetInfo,
 *    Dispatch, Combine) waits for a Route without a capacity, once. With a capacity nothing waits
 *    and everything can be captured in a graph, whose handles live as long as the graph is used.
 *  - Nothing depends on timing: every row's place and every bit of the results follow from the
 *    inputs alone (docs/numerics.md).
 */
#ifndef ZBCCL_MOE_H_
#define ZBCCL_MOE_H_

#include <zbccl/zbccl.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZBCCL_MOE_MAX_TOPK 32
/* Neighbouring elements that share one scale of e4m3 rows; a row's last group may be shorter. */
#define ZBCCL_MOE_SCALE_GROUP 128

/* ---- experts and ranks ---- */

typedef struct zbcclMoe* zbcclMoe_t;

typedef struct {
  size_t size;         /* sizeof(zbcclMoeConfig_t); set by ZBCCL_MOE_CONFIG_INITIALIZER */
  int32_t num_experts; /* E, over all ranks; a replica is an expert of its own */
  int32_t reserved;
  const int32_t* expert_ranks; /* [E]: the rank that holds each, read before the call returns; NULL:
                                  contiguous blocks, of which the first E % R ranks have one more */
} zbcclMoeConfig_t;

/* clang-format off */
#define ZBCCL_MOE_CONFIG_INITIALIZER {sizeof(zbcclMoeConfig_t), 0, 0, NULL}
/* clang-format on */

/* Collective; blocks. The same configuration on every rank, else zbcclInvalidUsage on all. A rank
 * may hold no expert. `call`: its deadline only. The experts of one rank bear local numbers 0 to
 * L - 1 in the order of their numbers. */
ZBCCL_API zbcclResult_t zbcclMoeCreate(zbcclMoe_t* moe, zbcclComm_t comm,
                                       const zbcclMoeConfig_t* config, const zbcclCall_t* call);
/* Not collective, before the communicator is destroyed. Its handles are stale from here on; work
 * that is still running goes on. NULL is accepted. */
ZBCCL_API zbcclResult_t zbcclMoeDestroy(zbcclMoe_t moe);

/* *experts: the numbers of this rank's *count experts, ascending; valid as long as `moe`. */
ZBCCL_API zbcclResult_t zbcclMoeGetLocalExperts(zbcclMoe_t moe, int32_t* count,
                                                const int32_t** experts);

/* Takes `rank` out (masked != 0) or back in, for this rank: from the next Route on no row goes
 * between this rank and that one, in either direction and whichever of the two asks for it; a
 * Combine skips rows that are on a rank masked when it is called. This rank itself cannot be
 * masked. All ranks, masked or not, go on making the same calls: a rank whose process ends fails
 * the communicator (docs/limits.md). Not while a call on `moe` runs. */
ZBCCL_API zbcclResult_t zbcclMoeSetMask(zbcclMoe_t moe, int rank, int masked);
/* masked[r]: 1 for the ranks that this rank has masked, else 0; `masked` holds R. */
ZBCCL_API zbcclResult_t zbcclMoeGetMask(zbcclMoe_t moe, int32_t* masked);

/* ---- routing: one exchange of counts ---- */

typedef struct zbcclMoeHandle* zbcclMoeHandle_t;

typedef enum {
  /* One row for each token and rank that holds at least one of its experts; by source rank, then
   * token. */
  zbcclMoeRankMajor = 0,
  /* One row for each token and slot; by local expert, then source rank, token, slot. Every expert
   * starts at a multiple of `alignment` rows, and the last one ends at one. */
  zbcclMoeExpertMajor = 1,
  /* [L, capacity] rows; those of an expert stand at its beginning, ordered as above. */
  zbcclMoeExpertMasked = 2
} zbcclMoeLayout_t;

typedef struct {
  size_t size;          /* sizeof(zbcclMoeRouting_t); set by ZBCCL_MOE_ROUTING_INITIALIZER */
  const void* topk_idx; /* [T, K] experts of each token; -1: none. An expert may come twice. */
  int64_t num_tokens;   /* T, each rank's own; 0 is legal, topk_idx may then be NULL */
  int32_t num_topk;     /* K, 1 to ZBCCL_MOE_MAX_TOPK; the same on every rank */
  int32_t idx_type;     /* zbcclInt32 or zbcclInt64; the same on every rank */
  int32_t layout;       /* zbcclMoeLayout_t; the same on every rank */
  int32_t alignment; /* ExpertMajor: rows, >= 1; the same on every rank. Others: 1, or ExpertMajor's
                        without an effect */
  int64_t capacity;  /* rows that this rank's outputs hold: in all (RankMajor, ExpertMajor) or for
                        each expert (ExpertMasked, >= 1). 0: as many as come. Rows beyond it are
                        never written, and skipped by Combine; nothing else fails. */
  int32_t* recv_counts; /* out, may be NULL: [L] expert_counts of zbcclMoeInfo_t, in memory of the
                           kind that topk_idx is in */
  /* out, may be NULL: {num_rows, needed_capacity, overflow}, as there. On the device overflow is -1
   * where an index was wrong: no row goes anywhere then, and GetInfo has the error. */
  int64_t* recv_status;
  /* out, expert layouts, may be NULL: [L, R] of each expert the rows from each source: how many are
   * written in the lower half, and the first, counted from the expert's first, in the upper. */
  int64_t* recv_ranges;
  /* Not 0: the counts are exchanged by the handle's first Dispatch, in one step with its rows,
   * which is the fastest way for few tokens. Needs a capacity; the same on every rank. */
  int32_t with_dispatch;
  int32_t reserved;
} zbcclMoeRouting_t;

/* clang-format off */
#define ZBCCL_MOE_ROUTING_INITIALIZER \
  {sizeof(zbcclMoeRouting_t), NULL, 0, 0, zbcclInt64, zbcclMoeRankMajor, 1, 0, NULL, NULL, NULL, \
   0, 0}
/* clang-format on */

/* Collective. Exchanges how many rows go where, and makes a handle that serves any number of
 * dispatches and combines of tokens so routed, in any order, until it is destroyed. topk_idx is not
 * used any more once the call, or its work, is complete. An index below -1 or not below E is
 * zbcclInvalidArgument.
 *
 * With `with_dispatch` the call only takes note of its arguments; no other rank is waited for. All
 * that is said of Route then happens in the first Dispatch: what is wrong is told there, topk_idx
 * is used and the arrays of counts are written until that is complete, and GetInfo and Combine
 * before it are zbcclInvalidUsage. On the device the two then are one kernel where the layout is
 * ExpertMasked. */
ZBCCL_API zbcclResult_t zbcclMoeRoute(zbcclMoe_t moe, const zbcclMoeRouting_t* routing,
                                      zbcclMoeHandle_t* handle, const zbcclCall_t* call);
/* Not collective. Work that is still running goes on. NULL is accepted. */
ZBCCL_API zbcclResult_t zbcclMoeHandleDestroy(zbcclMoeHandle_t handle);

/* What a handle knows. Arrays lie in host memory and are valid as long as the handle; NULL where
 * they have no meaning in the layout. */
typedef struct {
  size_t size; /* in: sizeof(zbcclMoeInfo_t) */
  int32_t rank;
  int32_t num_ranks;
  int32_t num_experts;
  int32_t num_local_experts;
  int32_t num_topk;
  int32_t layout;
  int32_t alignment;
  int32_t idx_type;
  int64_t num_tokens;
  int64_t capacity;        /* as given */
  int64_t num_rows;        /* rows that a dispatch writes here, an ExpertMajor's padding included */
  int64_t allocated_rows;  /* rows that its outputs must hold: num_rows or, where one was given, the
                              capacity; L * capacity for ExpertMasked */
  int64_t needed_capacity; /* the least capacity without overflow */
  int32_t overflow;        /* 1: rows of this rank's outputs were left out */
  int32_t send_overflow;   /* 1: rows of this rank's tokens were left out somewhere */
  const int32_t* local_experts; /* [L] their numbers */
  /* [L] rows written for each expert, without padding. RankMajor: how many slots name it, those of
   * rows left out included. */
  const int32_t* expert_counts;
  /* [L + 1] first row of each expert, then the end; not RankMajor. May lie beyond the capacity. */
  const int64_t* expert_offsets;
  /* [R + 1] RankMajor: the rows of source r are source_offsets[r] to source_offsets[r + 1]; those
   * from the capacity on are left out. */
  const int64_t* source_offsets;
  /* [L, R] rows written for each expert from each source, and the first of them; not RankMajor. */
  const int32_t* source_counts;
  const int64_t* source_begins;
  /* [R, E] slots that each rank's tokens have for each expert, as routed; those between ranks of
   * which one masks the other are 0. */
  const int32_t* counts;
  /* [R, R] rows from each rank (first index) to each other, as a RankMajor layout has them. */
  const int32_t* rank_counts;
} zbcclMoeInfo_t;

/* clang-format off */
#define ZBCCL_MOE_INFO_INITIALIZER \
  {sizeof(zbcclMoeInfo_t), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
   NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL}
/* clang-format on */

/* zbcclInvalidUsage while an asynchronous Route has not completed, or if it failed. Any thread. On
 * the device it waits for the Route; with a capacity, for all that the communicator has enqueued,
 * and gives the counts of the Route's last run, which the arrays keep until the next GetInfo. */
ZBCCL_API zbcclResult_t zbcclMoeHandleGetInfo(zbcclMoeHandle_t handle, zbcclMoeInfo_t* info);

/* ---- dispatch and combine ---- */

/* A call in two: the send phase takes the arguments and begins, the receive phase, with the same
 * handle and the same struct, returns when the outputs are complete. In between the memory that the
 * struct points at belongs to the call, other calls may be made, and several calls may be under
 * way; they are received in the order in which they were sent. On host memory the library's thread
 * does the work in between; `work` goes with both phases at once only. The receive phase returns
 * what went wrong. On the device no block of a kernel runs in between: a Dispatch sends its rows in
 * the send phase, and a Combine does everything in the receive phase. */
typedef enum {
  zbcclMoeBothPhases = 0,
  zbcclMoeSendPhase = 1,
  zbcclMoeReceivePhase = 2
} zbcclMoePhase_t;

/* How rows of f32, f16 or bf16 are quantized on their way (docs/numerics.md). */
typedef enum {
  zbcclMoeQuantNone = 0,
  zbcclMoeQuantFp8 = 1,      /* e4m3, an f32 scale for each group of 128 */
  zbcclMoeQuantFp8Pow2 = 2,  /* the same with scales rounded up to a power of two */
  zbcclMoeQuantFp8Ue8m0 = 3, /* the same, of which the exponents are kept: an int32 holds those of
                                four groups, the first in its lowest byte; 0 where a row has none */
  zbcclMoeQuantInt8 = 4      /* int8, one f32 scale for the row */
} zbcclMoeQuant_t;

typedef struct {
  size_t size;          /* sizeof(zbcclMoeDispatch_t); set by ZBCCL_MOE_DISPATCH_INITIALIZER */
  int32_t phase;        /* zbcclMoePhase_t */
  int32_t type;         /* zbcclDataType_t of x; the same on every rank */
  int32_t quant;        /* zbcclMoeQuant_t; the same on every rank */
  int32_t zero_padding; /* not 0: rows of recv_x and recv_scales that no token fills become 0: an
                           ExpertMajor's padding, and whatever is left of a capacity */
  int64_t hidden;       /* H, the same on every rank; rows are a multiple of 16 bytes */
  /* [T, H]; rows are quantized where `quant` says so, else copied as they are. May be NULL where
   * T is 0. */
  const void* x;
  int64_t x_stride;
  /* Scales that x's rows bring along and that are copied with them, any four-byte type: [T, S] with
   * strides of tokens and of scales. NULL: none; not with `quant`. */
  const void* x_scales;
  int64_t x_scale_strides[2];
  int32_t num_scales; /* S of x_scales, the same on every rank; 0 without x_scales */
  int32_t reserved;
  /* [rows, H] of x's type, or of the codes'; `recv_rows` is how many rows the outputs hold, at
   * least the handle's allocated_rows; 0: that many. ExpertMasked: [L, capacity, H], and a stride
   * is that of rows. */
  void* recv_x;
  int64_t recv_rows;
  int64_t recv_x_stride;
  /* Scales of each row, with strides of experts (ExpertMasked only), rows and scales; all 0:
   * contiguous in that order. The number of scales is x_scales', or H / 128, for packed exponents
   * H / 512 (each rounded up), or 1 for int8. */
  void* recv_scales;
  int64_t recv_scale_strides[3];
  /* [T, K]; given by every rank that has tokens where any rank asks for recv_topk_weights or
   * recv_row_weights, else not used. */
  const float* topk_weights;
  /* RankMajor, may be NULL: [rows, K] of idx_type: the local expert, or -1 for a slot without an
   * expert here; and topk_weights, 0 for such a slot. */
  void* recv_topk_idx;
  float* recv_topk_weights;
  /* Expert layouts, may be NULL: [rows] the weight of the slot that the row stands for. */
  float* recv_row_weights;
  /* May be NULL: [rows] the row's token on its source rank. Rows that no token fills have -1 here
   * and as recv_topk_idx, and the weight 0; an ExpertMasked's are left as they are unless
   * zero_padding is asked for. */
  int32_t* recv_src_idx;
} zbcclMoeDispatch_t;

/* clang-format off */
#define ZBCCL_MOE_DISPATCH_INITIALIZER \
  {sizeof(zbcclMoeDispatch_t), zbcclMoeBothPhases, zbcclBfloat16, zbcclMoeQuantNone, 0, 0, NULL, 0, \
   NULL, {0, 0}, 0, 0, NULL, 0, 0, NULL, {0, 0, 0}, NULL, NULL, NULL, NULL, NULL}
/* clang-format on */

/* Collective: row i of rank s's x goes to each place that the handle gives it. Outputs do not
 * overlap with each other or with inputs. Optional outputs may be asked for by some ranks only. */
ZBCCL_API zbcclResult_t zbcclMoeDispatch(zbcclMoeHandle_t handle,
                                         const zbcclMoeDispatch_t* dispatch,
                                         const zbcclCall_t* call);

typedef struct {
  size_t size;    /* sizeof(zbcclMoeCombine_t); set by ZBCCL_MOE_COMBINE_INITIALIZER */
  int32_t phase;  /* zbcclMoePhase_t */
  int32_t type;   /* of y, bias and out: zbcclFloat32, zbcclFloat16 or zbcclBfloat16; the same on
                     every rank */
  int64_t hidden; /* H, the same on every rank; rows are a multiple of 16 bytes */
  const void* y;  /* the experts' results, [rows, H] where the dispatch put the rows' inputs */
  int64_t y_stride;
  /* Expert layouts, may be NULL: [T, K], by which each row is multiplied; NULL: by 1. Each rank's
   * own matter. RankMajor: NULL, as a row is already the sum over the rank's experts. */
  const float* topk_weights;
  const void* bias[2]; /* [T, H], may be NULL: what the sum starts from */
  void* out;           /* [T, H] */
  int64_t out_stride;
  /* Expert layouts, not 0: the rows of one token on one rank are added up first, in the order of
   * the slots, and rounded to `type`; then these sums, in the order of the ranks. The same on every
   * rank. */
  int32_t pre_reduce;
  int32_t reserved;
  /* RankMajor, may be NULL: [rows, K] on the experts' ranks (on every rank with rows, or on none)
   * and, on any rank that wants them, [T, K] their sums over the ranks. */
  const float* recv_topk_weights;
  float* combined_topk_weights;
} zbcclMoeCombine_t;

/* clang-format off */
#define ZBCCL_MOE_COMBINE_INITIALIZER \
  {sizeof(zbcclMoeCombine_t), zbcclMoeBothPhases, zbcclBfloat16, 0, NULL, 0, NULL, {NULL, NULL}, \
   NULL, 0, 0, 0, NULL, NULL}
/* clang-format on */

/* Collective: out[t] = bias[0][t] + bias[1][t] + the rows of token t, in FP32, in the order of the
 * ranks (RankMajor) or of the slots, each product and each sum rounded, the result once more to
 * `type`. Without a bias the sum starts from +0; a token without rows gives its bias, or 0. Rows
 * that did not fit into a capacity are left out. Outputs do not overlap with each other or with
 * inputs. */
ZBCCL_API zbcclResult_t zbcclMoeCombine(zbcclMoeHandle_t handle, const zbcclMoeCombine_t* combine,
                                        const zbcclCall_t* call);

/* ---- looking inside ---- */

typedef struct {
  size_t size;             /* in: sizeof(zbcclMoeReport_t) */
  uint64_t metadata_bytes; /* tables in use: of this object and of its live handles */
  uint64_t held_bytes;     /* those, and memory kept for the next handles */
  uint64_t staged_bytes;   /* payload of its calls that was moved once more only to be moved */
  uint64_t routes;         /* calls completed */
  uint64_t dispatches;
  uint64_t combines;
  uint64_t handles; /* live ones */
  /* Thread blocks, and so SMs, of the last Dispatch and Combine on the device; 0 before. */
  int32_t dispatch_blocks;
  int32_t combine_blocks;
} zbcclMoeReport_t;

/* clang-format off */
#define ZBCCL_MOE_REPORT_INITIALIZER {sizeof(zbcclMoeReport_t), 0, 0, 0, 0, 0, 0, 0, 0, 0}
/* clang-format on */

/* Of this rank. Any thread. */
ZBCCL_API zbcclResult_t zbcclMoeGetReport(zbcclMoe_t moe, zbcclMoeReport_t* report);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* ZBCCL_MOE_H_ */
