/* zbccl: zero-buffer collective communication for distributed LLM inference. The C ABI.
 *
 * Conventions, for every function below unless it says otherwise:
 *  - Returns zbcclSuccess or a code; zbcclGetLastError() then says what was wrong, what was
 * expected and what to do.
 *  - Counts are in elements, sizes in bytes. A count of 0 is legal and still synchronises the
 * ranks.
 *  - A communicator may be used by one thread at a time; different communicators may be used by
 * different threads at once. zbcclCommAbort, zbcclCommGetAsyncError and zbcclCommGetStats may be
 * called from any thread at any time.
 *  - Every rank of a communicator calls the same operations in the same order with the same count,
 * type, operator and root. A mismatch is detected before any output is written and is reported on
 * every rank; the communicator stays usable.
 *  - Buffers may lie in memory from zbcclMemAlloc (read and written by peers in place) or anywhere
 * else in the process (reached by cross-memory attach where the system allows it, else staged and
 * counted).
 *  - Buffers of a call are all host memory or all memory of the communicator's CUDA device. Where a
 * rank has no bytes to send or get, and so perhaps no pointers, a `zbcclCall_t.stream` says that
 * the call is on device memory (there cudaStreamLegacy means the default stream). A call on device
 * memory is ordered on `zbcclCall_t.stream` (NULL: the legacy default stream), returns
 * once it is enqueued, and can be captured in a CUDA graph (unless the GPUs do not reach each
 * other's memory, so that it goes through host memory); calls of one communicator on several
 * streams are put in the order in which they are made. What goes wrong on the device is reported by
 * zbcclCommGetAsyncError and by the communicator's next call, which is not made. After a mismatch
 * the calls enqueued since are left out as well, on every rank, and what follows that call works.
 *  - Input and output are the same range, or do not overlap. The library keeps no reference to a
 * buffer once the call has returned, or, for an asynchronous call, once its work is complete.
 */
#ifndef ZBCCL_ZBCCL_H_
#define ZBCCL_ZBCCL_H_

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <zbccl/version.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZBCCL_API __attribute__((visibility("default")))

/* ---- results
 * ----------------------------------------------------------------------------------------------------
 */

typedef enum {
  zbcclSuccess = 0,
  zbcclInvalidArgument =
      1, /* an argument is wrong by itself: a null pointer, a negative count, an unknown type */
  zbcclInvalidUsage = 2,     /* the call does not fit the state or the other ranks' calls */
  zbcclSystemError = 3,      /* the operating system refused something */
  zbcclCudaError = 4,        /* the CUDA driver or runtime refused something */
  zbcclNetworkError = 5,     /* a connection could not be made or broke */
  zbcclTimeout = 6,          /* a deadline passed */
  zbcclRemoteFailed = 7,     /* another rank died, failed or timed out */
  zbcclAborted = 8,          /* the communicator was aborted */
  zbcclRevoked = 9,          /* the communicator or the memory was taken back */
  zbcclOutOfMemory = 10,     /* memory, descriptors or address space ran out */
  zbcclUnsupported = 11,     /* this build or this machine cannot do it */
  zbcclVersionMismatch = 12, /* ranks run incompatible versions */
  zbcclInternalError = 13,   /* a defect in zbccl */
  zbcclNumResults = 14
} zbcclResult_t;

/* Text for a result code, e.g. "timeout". Never NULL; static storage. */
ZBCCL_API const char* zbcclGetErrorString(zbcclResult_t result);

/* The message of the last error that a zbccl call returned on this thread; "" if none. Valid until
 * the next zbccl call on this thread. */
ZBCCL_API const char* zbcclGetLastError(void);

/* MAJOR * 10000 + MINOR * 100 + PATCH of the loaded library. */
ZBCCL_API zbcclResult_t zbcclGetVersion(int* version);

/* ---- types and operators
 * ---------------------------------------------------------------------------------------- */

typedef enum {
  zbcclFloat32 = 0,
  zbcclFloat64 = 1,
  zbcclFloat16 = 2,
  zbcclBfloat16 = 3,
  zbcclFloat8e4m3 = 4, /* OCP E4M3 (no infinities) */
  zbcclFloat8e5m2 = 5,
  zbcclInt8 = 6,
  zbcclUint8 = 7,
  zbcclInt32 = 8,
  zbcclUint32 = 9,
  zbcclInt64 = 10,
  zbcclUint64 = 11,
  zbcclInt16 = 12,
  zbcclUint16 = 13,
  zbcclNumTypes = 14
} zbcclDataType_t;

typedef enum {
  zbcclSum = 0,
  zbcclProd = 1,
  zbcclMin = 2,
  zbcclMax = 3,
  zbcclAvg = 4,
  zbcclNumOps = 5
} zbcclRedOp_t;

/* Bytes of one element; 0 for an unknown type. */
ZBCCL_API size_t zbcclTypeSize(zbcclDataType_t type);
/* "f32", "bf16", ...; "unknown" for an unknown type. */
ZBCCL_API const char* zbcclTypeName(zbcclDataType_t type);
/* "sum", "prod", ...; "unknown" for an unknown operator. */
ZBCCL_API const char* zbcclOpName(zbcclRedOp_t op);

/* ---- finding each other
 * ----------------------------------------------------------------------------------------- */

#define ZBCCL_UNIQUE_ID_BYTES 128

/* Address of a rendezvous and a 32-byte secret. Whoever holds it can join, so pass it over a
 * channel you trust. */
typedef struct {
  char internal[ZBCCL_UNIQUE_ID_BYTES];
} zbcclUniqueId;

/* Starts a rendezvous server in this process and returns its id. The server lives until the process
 * ends or every rank of the communicator has left. The address is ZBCCL_HOST_ADDRESS or the first
 * interface that is up. */
ZBCCL_API zbcclResult_t zbcclGetUniqueId(zbcclUniqueId* id);
/* Text form of an id ("address:port/secret"), for passing it in an environment variable. `size` >=
 * 192. */
ZBCCL_API zbcclResult_t zbcclUniqueIdToString(const zbcclUniqueId* id, char* text, size_t size);
ZBCCL_API zbcclResult_t zbcclUniqueIdFromString(const char* text, zbcclUniqueId* id);

/* A key-value store that ranks can meet in. */
typedef struct zbcclStore* zbcclStore_t;

/* A store inside this process, for ranks that are threads. */
ZBCCL_API zbcclResult_t zbcclStoreCreateLocal(zbcclStore_t* store);
/* A client of the store that torchrun (torch.distributed.TCPStore) serves at host:port. */
ZBCCL_API zbcclResult_t zbcclStoreCreateC10d(const char* host, int port, zbcclStore_t* store);
ZBCCL_API zbcclResult_t zbcclStoreDestroy(zbcclStore_t store);

/* ---- communicators
 * ---------------------------------------------------------------------------------------------- */

typedef struct zbcclComm* zbcclComm_t;

/* The calling thread's current CUDA device if it has a context there, else none. */
#define ZBCCL_DEVICE_AUTO (-1)
/* Host memory only. */
#define ZBCCL_DEVICE_NONE (-2)

typedef struct {
  size_t size;             /* sizeof(zbcclConfig_t); set by ZBCCL_CONFIG_INITIALIZER */
  int64_t timeout_ms;      /* deadline of every wait; 0: ZBCCL_TIMEOUT (10 minutes) */
  int64_t init_timeout_ms; /* deadline of the initialisation; 0: ZBCCL_INIT_TIMEOUT (5 minutes) */
  int32_t host_wait;       /* 0: decide by cores, 1: spin, 2: sleep */
  int32_t device;     /* CUDA device of this rank: an ordinal, ZBCCL_DEVICE_AUTO or _NONE; all ranks
                         have one or none has */
  int32_t max_blocks; /* thread blocks that a call on device memory may use; 0: the plan decides */
  int32_t reserved;
} zbcclConfig_t;

/* clang-format off */
#define ZBCCL_CONFIG_INITIALIZER {sizeof(zbcclConfig_t), 0, 0, 0, ZBCCL_DEVICE_AUTO, 0, 0}
/* clang-format on */

/* Collective over `nranks` callers that hold the same id; each gives a different rank in [0,
 * nranks). Wrong world size, duplicate rank and version mismatch are reported on every rank.
 * `config` may be NULL. */
ZBCCL_API zbcclResult_t zbcclCommInitRank(zbcclComm_t* comm, int nranks, zbcclUniqueId id, int rank,
                                          const zbcclConfig_t* config);
/* As zbcclCommInitRank, with rank, size and rendezvous read from the environment: ZBCCL_RANK /
 * ZBCCL_WORLD_SIZE / ZBCCL_UNIQUE_ID, torchrun, Slurm, Open MPI, MPICH, in that order. Without any
 * of them: a communicator of one rank. */
ZBCCL_API zbcclResult_t zbcclCommInitEnv(zbcclComm_t* comm, const zbcclConfig_t* config);
/* As zbcclCommInitRank, meeting in `store` under `name`; a name is used for one communicator only.
 */
ZBCCL_API zbcclResult_t zbcclCommInitStore(zbcclComm_t* comm, int nranks, int rank,
                                           zbcclStore_t store, const char* name,
                                           const zbcclConfig_t* config);
/* `nranks` communicators of this process, one for each of its threads. `comms` has room for
 * `nranks` handles. They have no device, unless `config` names one, which they share. */
ZBCCL_API zbcclResult_t zbcclCommInitAll(zbcclComm_t* comms, int nranks,
                                         const zbcclConfig_t* config);
/* Collective: ranks that give the same `color` >= 0 form a communicator, ordered by `key`, then by
 * old rank. A negative color joins none and gets NULL. */
ZBCCL_API zbcclResult_t zbcclCommSplit(zbcclComm_t comm, int color, int key, zbcclComm_t* out,
                                       const zbcclConfig_t* config);

/* Waits for this rank's asynchronous work, tells the others that this rank leaves, and frees the
 * communicator. */
ZBCCL_API zbcclResult_t zbcclCommDestroy(zbcclComm_t comm);
/* Any thread. Ends every wait on this communicator, here and on the other ranks, with zbcclAborted.
 * Destroy it after. */
ZBCCL_API zbcclResult_t zbcclCommAbort(zbcclComm_t comm);
/* Any thread, never blocks. *state is zbcclSuccess, or the error that made the communicator
 * unusable. */
ZBCCL_API zbcclResult_t zbcclCommGetAsyncError(zbcclComm_t comm, zbcclResult_t* state);
ZBCCL_API zbcclResult_t zbcclCommCount(zbcclComm_t comm, int* nranks);
ZBCCL_API zbcclResult_t zbcclCommUserRank(zbcclComm_t comm, int* rank);
/* Ordinal of this rank's CUDA device, or ZBCCL_DEVICE_NONE. */
ZBCCL_API zbcclResult_t zbcclCommGetDevice(zbcclComm_t comm, int* device);

typedef void* zbcclStream_t; /* cudaStream_t for device memory; NULL for host memory */

/* ---- memory
 * -----------------------------------------------------------------------------------------------------
 */

/* Memory from the process's pool: every rank on the machine reads and writes it in place. Aligned
 * to 128 bytes, contents undefined. Any thread. A block that asynchronous work still uses is reused
 * only when that work has ended. */
ZBCCL_API zbcclResult_t zbcclMemAlloc(void** ptr, size_t size);
/* NULL is accepted; a pointer that zbcclMemAlloc did not return is zbcclInvalidArgument. Any
 * thread. */
ZBCCL_API zbcclResult_t zbcclMemFree(void* ptr);
/* Memory of CUDA device `device` from the process's pool there: peers on the machine read and write
 * it in place. Aligned to 512 bytes, contents undefined. Freed with zbcclMemFree once nothing on
 * any stream uses it any more. Any thread. */
ZBCCL_API zbcclResult_t zbcclMemAllocDevice(void** ptr, size_t size, int device);
/* Makes device memory of another allocator (cudaMalloc, a framework's tensors) reachable for the
 * peers; the allocation that [ptr, ptr + size) lies in is registered as a whole. Counted: as many
 * zbcclMemDeregister, with the same pointer, as registrations end it, before the memory is freed.
 * zbcclUnsupported for memory that the driver cannot share. Any thread. */
ZBCCL_API zbcclResult_t zbcclMemRegister(const void* ptr, size_t size);
ZBCCL_API zbcclResult_t zbcclMemDeregister(const void* ptr);

/* For torch.cuda.memory.CUDAPluggableAllocator: tensors of a MemPool made with them are born
 * registered. PyTorch calls them; `stream` is a cudaStream_t. NULL where there is no memory. Freed
 * memory is used again once `stream` has come as far. */
ZBCCL_API void* zbcclTorchAlloc(ssize_t size, int device, zbcclStream_t stream);
ZBCCL_API void zbcclTorchFree(void* ptr, ssize_t size, int device, zbcclStream_t stream);

typedef struct {
  size_t size;                    /* in: sizeof(zbcclMemReport_t) */
  uint64_t staged_bytes;          /* payload moved an extra time only in order to move it */
  uint64_t landing_bytes;         /* payload that a reduction left in library memory on its way */
  uint64_t metadata_bytes;        /* counters, flags, tables in use */
  uint64_t held_bytes;            /* physical memory the library keeps beyond users' live blocks */
  uint64_t user_bytes;            /* live blocks from zbcclMemAlloc */
  uint64_t reserved_bytes;        /* address space reserved */
  uint64_t direct_calls;          /* calls that used every buffer where it lies */
  uint64_t staged_calls;          /* calls that fell back to staging */
  uint64_t attached_bytes;        /* moved straight between processes by cross-memory attach */
  uint64_t device_user_bytes;     /* live blocks from zbcclMemAllocDevice, on all devices */
  uint64_t device_held_bytes;     /* physical device memory the library keeps beyond those */
  uint64_t device_reserved_bytes; /* device address space reserved, for peers' memory too */
} zbcclMemReport_t;

/* Of this process, since it started. Any thread. */
ZBCCL_API zbcclResult_t zbcclMemGetReport(zbcclMemReport_t* report);

/* ---- operations
 * -------------------------------------------------------------------------------------------------
 */

typedef struct zbcclWork* zbcclWork_t;

/* How one call is made. NULL stands for all defaults: the call blocks and uses the communicator's
 * deadline. */
typedef struct {
  size_t size; /* sizeof(zbcclCall_t); set by ZBCCL_CALL_INITIALIZER */
  zbcclStream_t stream;
  zbcclWork_t*
      work; /* not NULL: return at once and give a handle, to be freed with zbcclWorkFree */
  int64_t timeout_ms; /* 0: the communicator's */
  int32_t
      max_blocks; /* thread blocks on the device, the same on every rank; 0: the communicator's */
  int32_t tag;    /* of zbcclSend and zbcclRecv of host memory, from 0; else not used */
} zbcclCall_t;

/* clang-format off */
#define ZBCCL_CALL_INITIALIZER {sizeof(zbcclCall_t), NULL, NULL, 0, 0, 0}
/* clang-format on */

/* Asynchronous operations of one communicator run in the order of their calls, on the library's
 * thread; sends and receives progress beside them, in order for each peer and direction. */

/* Waits until the work is done and returns its result. timeout_ms 0: no limit beyond the call's own
 * deadline; zbcclTimeout leaves the work running. Any thread. */
ZBCCL_API zbcclResult_t zbcclWorkWait(zbcclWork_t work, int64_t timeout_ms);
/* *done is 1 once the work is done; the return value is then its result. Never blocks. Any thread.
 */
ZBCCL_API zbcclResult_t zbcclWorkTest(zbcclWork_t work, int* done);
/* Frees the handle; work that is still running goes on. NULL is accepted. */
ZBCCL_API zbcclResult_t zbcclWorkFree(zbcclWork_t work);

/* recv[i] = op over ranks of send[i]; `count` elements. In place: send == recv. Floats are summed
 * in rank order in FP32 (FP64 in FP64) and rounded once: the same bits on every rank, in every run
 * (docs/numerics.md). */
ZBCCL_API zbcclResult_t zbcclAllReduce(const void* send, void* recv, size_t count,
                                       zbcclDataType_t type, zbcclRedOp_t op, zbcclComm_t comm,
                                       const zbcclCall_t* call);
/* recv[r * count + i] = rank r's send[i]; recv holds nranks * count. In place: send == recv + rank
 * * count. */
ZBCCL_API zbcclResult_t zbcclAllGather(const void* send, void* recv, size_t count,
                                       zbcclDataType_t type, zbcclComm_t comm,
                                       const zbcclCall_t* call);
/* recv[i] = op over ranks of send[rank * count + i]; send holds nranks * count. In place: recv ==
 * send + rank * count. */
ZBCCL_API zbcclResult_t zbcclReduceScatter(const void* send, void* recv, size_t count,
                                           zbcclDataType_t type, zbcclRedOp_t op, zbcclComm_t comm,
                                           const zbcclCall_t* call);
/* recv[i] = root's send[i]. `send` is read on the root only. In place: send == recv on the root. */
ZBCCL_API zbcclResult_t zbcclBroadcast(const void* send, void* recv, size_t count,
                                       zbcclDataType_t type, int root, zbcclComm_t comm,
                                       const zbcclCall_t* call);
/* recv[i] on the root = op over ranks of send[i]; the other ranks' recv is not used and may be
 * NULL. In place: send == recv on the root. Order of summation as in zbcclAllReduce. */
ZBCCL_API zbcclResult_t zbcclReduce(const void* send, void* recv, size_t count,
                                    zbcclDataType_t type, zbcclRedOp_t op, int root,
                                    zbcclComm_t comm, const zbcclCall_t* call);
/* On the root: recv[r * count + i] = rank r's send[i]; recv holds nranks * count there and is not
 * used elsewhere. In place: send == recv + rank * count on the root. */
ZBCCL_API zbcclResult_t zbcclGather(const void* send, void* recv, size_t count,
                                    zbcclDataType_t type, int root, zbcclComm_t comm,
                                    const zbcclCall_t* call);
/* recv[i] = the root's send[rank * count + i]; send holds nranks * count on the root and is not
 * used elsewhere. In place: recv == send + rank * count on the root. */
ZBCCL_API zbcclResult_t zbcclScatter(const void* send, void* recv, size_t count,
                                     zbcclDataType_t type, int root, zbcclComm_t comm,
                                     const zbcclCall_t* call);
/* recv[r * count + i] = rank r's send[rank * count + i]; both hold nranks * count. In place, on
 * every rank or on none: send == recv. */
ZBCCL_API zbcclResult_t zbcclAllToAll(const void* send, void* recv, size_t count,
                                      zbcclDataType_t type, zbcclComm_t comm,
                                      const zbcclCall_t* call);

/* The forms with sizes of their own for each rank. Counts and offsets are arrays of nranks elements
 * counts; the arrays are read before the call returns, asynchronous or not. Offsets NULL: the
 * blocks lie one behind the other, in rank order. Blocks of one output must not overlap. Counts
 * that do not agree between ranks are zbcclInvalidUsage on every rank, before any output is
 * written. */

/* recv[offsets[r] + i] = rank r's send[i], i < counts[r]; send holds counts[rank]. The same counts
 * on every rank; offsets are each rank's own. In place: send == recv + offsets[rank]. */
ZBCCL_API zbcclResult_t zbcclAllGatherV(const void* send, void* recv, const size_t* counts,
                                        const size_t* offsets, zbcclDataType_t type,
                                        zbcclComm_t comm, const zbcclCall_t* call);
/* Rank r gets recv[i] = op over ranks of send[first + i], i < counts[r], where `first` is the sum
 * of the counts before r; send holds the sum of all counts. The same counts on every rank. In
 * place: recv == send + first. */
ZBCCL_API zbcclResult_t zbcclReduceScatterV(const void* send, void* recv, const size_t* counts,
                                            zbcclDataType_t type, zbcclRedOp_t op, zbcclComm_t comm,
                                            const zbcclCall_t* call);
/* recv[recv_offsets[r] + i] = rank r's send[its send_offsets[rank] + i], i < recv_counts[r]; what
 * this rank expects of r is what r's send_counts[rank] says. Input and output do not overlap. */
ZBCCL_API zbcclResult_t zbcclAllToAllV(const void* send, const size_t* send_counts,
                                       const size_t* send_offsets, void* recv,
                                       const size_t* recv_counts, const size_t* recv_offsets,
                                       zbcclDataType_t type, zbcclComm_t comm,
                                       const zbcclCall_t* call);

/* Returns when every rank has called it. */
ZBCCL_API zbcclResult_t zbcclBarrier(zbcclComm_t comm, const zbcclCall_t* call);
/* Meets the peer's zbcclRecv with the same tag, count and type; returns when the peer has the data.
 * Messages between two ranks that have the same tag keep their order. Of messages that are asked
 * for in another order than they are sent, those that come too early are put aside in a copy, which
 * is counted as staged; their senders go on. Messages of device memory have no tag. */
ZBCCL_API zbcclResult_t zbcclSend(const void* send, size_t count, zbcclDataType_t type, int peer,
                                  zbcclComm_t comm, const zbcclCall_t* call);
ZBCCL_API zbcclResult_t zbcclRecv(void* recv, size_t count, zbcclDataType_t type, int peer,
                                  zbcclComm_t comm, const zbcclCall_t* call);

/* ---- fused operations
 * ---------------------------------------------------------------------------------------------
 */

/* What zbcclAllReduceRmsNorm gives of each normalised row in FP8 (E4M3), besides or instead of the
 * row itself. The numbers of a group of 128 neighbouring elements share a scale. */
typedef enum {
  zbcclNormNoCodes = 0,
  zbcclNormTensorScale = 1,      /* one scale for everything, which the caller gives */
  zbcclNormGroupScales = 2,      /* the group's largest magnitude / 448 */
  zbcclNormGroupPowersOfTwo = 3, /* the same, raised to a power of two */
  zbcclNumNormCodes = 4
} zbcclNormCodes_t;

/* Matrices are [tokens, hidden], rows one behind the other. On device memory x, residual, weight,
 * residual_out and out lie on 16 bytes, codes on 8. */
typedef struct {
  size_t size;             /* sizeof(zbcclRmsNorm_t); set by ZBCCL_RMS_NORM_INITIALIZER */
  const void* x;           /* this rank's part of the sum */
  const void* residual;    /* the same values on every rank; NULL: none */
  const void* weight;      /* [hidden], the same values on every rank */
  void* residual_out;      /* the sum plus residual; may be `residual` or `x`; NULL: not wanted */
  void* out;               /* the normalised rows; may be `x`; NULL: not wanted */
  void* codes;             /* [tokens, hidden] bytes of E4M3, where code_form asks for them */
  float* scales;           /* of the groups; NULL: not wanted */
  uint8_t* scales_ue8m0;   /* of zbcclNormGroupPowersOfTwo: the exponents, as OCP UE8M0; or NULL */
  size_t tokens;           /* 0 is legal */
  size_t hidden;           /* a multiple of 8, with scales of groups of 128; at most 16384 */
  size_t scale_row_stride; /* elements between the scales of neighbouring tokens, and of */
  size_t scale_group_stride; /* neighbouring groups: one of them is 1. 0, 0: (hidden / 128, 1) */
  zbcclDataType_t type;      /* of x, residual, weight, residual_out and out: bf16 or f16 */
  zbcclNormCodes_t code_form;
  float epsilon;
  float scale; /* zbcclNormTensorScale: > 0 */
  int32_t
      one_plus_weight; /* not 0: rows are multiplied by 1 + weight, as Gemma keeps its weights */
  int32_t reserved;
} zbcclRmsNorm_t;

/* clang-format off */
#define ZBCCL_RMS_NORM_INITIALIZER {sizeof(zbcclRmsNorm_t), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
                                    0, 0, 0, 0, zbcclBfloat16, zbcclNormNoCodes, 1e-6F, 1.0F, 0, 0}
/* clang-format on */

/* residual_out = the sum of x over ranks, rounded as by zbcclAllReduce, plus residual, rounded;
 * out = residual_out / sqrt(mean of its squares + epsilon) * weight, row by row; codes = that
 * value, not yet rounded, / scale. Every step is one FP32 operation in an order that is written
 * down (docs/numerics.md): the same bits on every rank, in every run, on GPUs and processors. Ranks
 * give the same tokens, hidden, type, code_form, epsilon, scale and one_plus_weight, and want the
 * same outputs. `args` is read before the call returns, asynchronous or not. */
ZBCCL_API zbcclResult_t zbcclAllReduceRmsNorm(const zbcclRmsNorm_t* args, zbcclComm_t comm,
                                              const zbcclCall_t* call);

/* A sum over ranks that sends 8-bit codes instead of elements: less to move, and less exact
 * (docs/numerics.md has the error). `type`: f32, f16 or bf16; `code`: zbcclFloat8e4m3 or zbcclInt8,
 * with an FP32 scale for each 128 neighbouring elements. Each rank's elements are quantised, their
 * values are added in rank order in FP32, the sum is quantised once more and then rounded: the same
 * bits on every rank. With one rank a copy. In place: send == recv. On host memory, where ranks
 * read each other's elements where they lie, nothing is saved; the result is the same. */
ZBCCL_API zbcclResult_t zbcclAllReduceQuantized(const void* send, void* recv, size_t count,
                                                zbcclDataType_t type, zbcclDataType_t code,
                                                zbcclComm_t comm, const zbcclCall_t* call);

/* ---- groups of calls
 * ---------------------------------------------------------------------------------------------
 */

/* Operations and zbcclCommInitRank called by this thread between GroupStart and the matching
 * GroupEnd are checked and noted, and made together at the end: sends and receives all progress at
 * once (a ring of blocking sends cannot deadlock), and one thread may call for several
 * communicators. Collectives of one communicator keep their order. Groups nest; the outermost end
 * does the work. Buffers, and the handle that zbcclCommInitRank writes, are used until then. Work
 * handles of asynchronous calls are valid at once and complete after the end.
 *
 * zbcclGroupEnd blocks until every blocking call of the group is done and returns the first error.
 * A call that was refused when it was made makes the end refuse the whole group, none of which has
 * then been started, with zbcclInvalidUsage. Follows ncclGroupStart and ncclGroupEnd. */
ZBCCL_API zbcclResult_t zbcclGroupStart(void);
ZBCCL_API zbcclResult_t zbcclGroupEnd(void);
/* Leaves this thread's group, nested ones included, without making its calls; their work handles
 * complete with zbcclAborted. For error paths; without a group it does nothing. */
ZBCCL_API zbcclResult_t zbcclGroupCancel(void);

/* ---- looking inside
 * --------------------------------------------------------------------------------------------- */

typedef struct {
  size_t size;           /* in: sizeof(zbcclCommStats_t) */
  uint64_t operations;   /* completed calls of this rank */
  uint64_t failures;     /* calls that returned an error */
  uint64_t bytes;        /* payload of completed calls: count * element size */
  uint64_t staged_bytes; /* of this communicator, as in zbcclMemReport_t */
  uint64_t landing_bytes;
  uint64_t metadata_bytes; /* control memory of this rank in this communicator */
  uint64_t wait_ns;        /* time spent waiting for other ranks */
} zbcclCommStats_t;

ZBCCL_API zbcclResult_t zbcclCommGetStats(zbcclComm_t comm, zbcclCommStats_t* stats);
/* The algorithm that the last completed collective on this communicator used: "one_shot",
 * "two_shot", "direct", ...; "none" before the first. Static storage. */
ZBCCL_API const char* zbcclCommLastAlgorithm(zbcclComm_t comm);

/* The registry of ZBCCL_* variables as a JSON array of {name, type, default, range, text, value,
 * set}. The text is written to `buffer` if *size suffices (NULL and 0 to ask); *size is set to what
 * is needed, the final NUL included. */
ZBCCL_API zbcclResult_t zbcclGetEnvironment(char* buffer, size_t* size);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* ZBCCL_ZBCCL_H_ */
