// NVIDIA's own NCCL, loaded when something is asked for that zbccl does not do.
#pragma once

#include "functions.h"

// What is taken from it.
#define ZBCCL_NCCL_REAL_FUNCTIONS(X) \
  X(ncclGetUniqueId)                 \
  X(ncclGetLastError)                \
  X(ncclCommInitRank)                \
  X(ncclCommDestroy)                 \
  X(ncclGroupStart)                  \
  X(ncclGroupEnd)                    \
  X(ncclAllReduce)                   \
  X(ncclReduce)                      \
  X(ncclReduceScatter)               \
  X(ncclRedOpCreatePreMulSum)        \
  X(ncclRedOpDestroy)

// What only newer ones have; null where it is missing.
#define ZBCCL_NCCL_REAL_OPTIONAL(X)  \
  X(ncclCommWindowRegister)          \
  X(ncclCommWindowDeregister)        \
  X(ncclDevCommCreate)               \
  X(ncclDevCommDestroy)              \
  X(ncclTeamWorld)                   \
  X(ncclTeamLsa)                     \
  X(ncclTeamRail)                    \
  X(ncclTeamRankToWorld)             \
  X(ncclTeamRankToLsa)               \
  X(ncclLsaBarrierCreateRequirement) \
  X(ncclGinBarrierCreateRequirement) \
  X(ncclLLA2ACalcSlots)              \
  X(ncclLLA2ACreateRequirement)

namespace zbccl::nccl {

struct Real {
#define ZBCCL_NCCL_MEMBER(name) decltype(&::name) name = nullptr;
  ZBCCL_NCCL_REAL_FUNCTIONS(ZBCCL_NCCL_MEMBER)
  ZBCCL_NCCL_REAL_OPTIONAL(ZBCCL_NCCL_MEMBER)
#undef ZBCCL_NCCL_MEMBER
};

// The one library of the process, found on first use: what ZBCCL_NCCL_LIBRARY names, one that is
// loaded already, or libnccl.so.2 in LD_LIBRARY_PATH or the system's folders; never this library
// itself. `asker` is what needs it, for the message.
ncclResult_t find_real(const char* asker, const Real** real);

// Whether ZBCCL_NCCL_LIBRARY names one.
bool real_is_named();

}  // namespace zbccl::nccl
