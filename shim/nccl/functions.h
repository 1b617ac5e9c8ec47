// The functions that NCCL 2.28 declares and its library exports, each also with a p in front, as
// NCCL has it for profilers. Where NCCL's own header came first, its types are used, and what
// differs does not compile (tests/nccl).
#pragma once

#ifndef NCCL_H_
#include "types.h"
#endif

#define ZBCCL_NCCL_DECLARE(result, name, parameters) \
  result name parameters;                            \
  result p##name parameters

extern "C" {

ZBCCL_NCCL_DECLARE(ncclResult_t, ncclMemAlloc, (void** ptr, size_t size));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclMemFree, (void* ptr));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclGetVersion, (int* version));
ZBCCL_NCCL_DECLARE(const char*, ncclGetErrorString, (ncclResult_t result));
ZBCCL_NCCL_DECLARE(const char*, ncclGetLastError, (ncclComm_t comm));
ZBCCL_NCCL_DECLARE(void, ncclResetDebugInit, ());
void ncclResetDebugInitInternal();

ZBCCL_NCCL_DECLARE(ncclResult_t, ncclGetUniqueId, (ncclUniqueId * id));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommInitRank,
                   (ncclComm_t * comm, int nranks, ncclUniqueId id, int rank));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommInitRankConfig,
                   (ncclComm_t * comm, int nranks, ncclUniqueId id, int rank,
                    ncclConfig_t* config));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommInitRankScalable,
                   (ncclComm_t * comm, int nranks, int rank, int nids, ncclUniqueId* ids,
                    ncclConfig_t* config));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommInitAll,
                   (ncclComm_t * comms, int ndev, const int* devices));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommSplit,
                   (ncclComm_t comm, int color, int key, ncclComm_t* out, ncclConfig_t* config));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommShrink,
                   (ncclComm_t comm, int* excluded, int num_excluded, ncclComm_t* out,
                    ncclConfig_t* config, int flags));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommFinalize, (ncclComm_t comm));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommDestroy, (ncclComm_t comm));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommAbort, (ncclComm_t comm));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommRevoke, (ncclComm_t comm, int flags));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommGetAsyncError, (ncclComm_t comm, ncclResult_t* error));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommCount, (ncclComm_t comm, int* count));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommCuDevice, (ncclComm_t comm, int* device));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommUserRank, (ncclComm_t comm, int* rank));

ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommRegister,
                   (ncclComm_t comm, void* buffer, size_t size, void** handle));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommDeregister, (ncclComm_t comm, void* handle));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommWindowRegister,
                   (ncclComm_t comm, void* buffer, size_t size, ncclWindow_t* window, int flags));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclCommWindowDeregister, (ncclComm_t comm, ncclWindow_t window));

ZBCCL_NCCL_DECLARE(ncclResult_t, ncclRedOpCreatePreMulSum,
                   (ncclRedOp_t * op, void* scalar, ncclDataType_t type,
                    ncclScalarResidence_t residence, ncclComm_t comm));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclRedOpDestroy, (ncclRedOp_t op, ncclComm_t comm));

ZBCCL_NCCL_DECLARE(ncclResult_t, ncclReduce,
                   (const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                    int root, ncclComm_t comm, cudaStream_t stream));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclBcast,
                   (void* buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                    cudaStream_t stream));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclBroadcast,
                   (const void* send, void* recv, size_t count, ncclDataType_t type, int root,
                    ncclComm_t comm, cudaStream_t stream));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclAllReduce,
                   (const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                    ncclComm_t comm, cudaStream_t stream));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclReduceScatter,
                   (const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                    ncclComm_t comm, cudaStream_t stream));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclAllGather,
                   (const void* send, void* recv, size_t count, ncclDataType_t type,
                    ncclComm_t comm, cudaStream_t stream));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclAlltoAll,
                   (const void* send, void* recv, size_t count, ncclDataType_t type,
                    ncclComm_t comm, cudaStream_t stream));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclGather,
                   (const void* send, void* recv, size_t count, ncclDataType_t type, int root,
                    ncclComm_t comm, cudaStream_t stream));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclScatter,
                   (const void* send, void* recv, size_t count, ncclDataType_t type, int root,
                    ncclComm_t comm, cudaStream_t stream));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclSend,
                   (const void* send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                    cudaStream_t stream));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclRecv,
                   (void* recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                    cudaStream_t stream));

ZBCCL_NCCL_DECLARE(ncclResult_t, ncclGroupStart, ());
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclGroupEnd, ());
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclGroupSimulateEnd, (ncclSimInfo_t * info));

// The interface for kernels.
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclDevCommCreate,
                   (ncclComm_t comm, const ncclDevCommRequirements_t* requirements,
                    ncclDevComm_t* out));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclDevCommDestroy,
                   (ncclComm_t comm, const ncclDevComm_t* dev_comm));
ZBCCL_NCCL_DECLARE(ncclTeam_t, ncclTeamWorld, (ncclComm_t comm));
ZBCCL_NCCL_DECLARE(ncclTeam_t, ncclTeamLsa, (ncclComm_t comm));
ZBCCL_NCCL_DECLARE(ncclTeam_t, ncclTeamRail, (ncclComm_t comm));
ZBCCL_NCCL_DECLARE(int, ncclTeamRankToWorld, (ncclComm_t comm, ncclTeam_t team, int rank));
ZBCCL_NCCL_DECLARE(int, ncclTeamRankToLsa, (ncclComm_t comm, ncclTeam_t team, int rank));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclLsaBarrierCreateRequirement,
                   (ncclTeam_t team, int count, ncclLsaBarrierHandle_t* handle,
                    ncclDevResourceRequirements_t* requirements));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclGinBarrierCreateRequirement,
                   (ncclComm_t comm, ncclTeam_t team, int count, ncclGinBarrierHandle_t* handle,
                    ncclDevResourceRequirements_t* requirements));
ZBCCL_NCCL_DECLARE(int, ncclLLA2ACalcSlots, (int max_elements, int max_element_size));
ZBCCL_NCCL_DECLARE(ncclResult_t, ncclLLA2ACreateRequirement,
                   (int blocks, int slots, ncclLLA2AHandle_t* handle,
                    ncclDevResourceRequirements_t* requirements));

}  // extern "C"
