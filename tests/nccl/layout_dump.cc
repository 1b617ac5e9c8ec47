// Prints sizes, offsets and numbers of the interface. Built once with the project's types and,
// where NVIDIA's header is found, once with that.
#ifdef ZBCCL_TEST_REAL_HEADER
#include <nccl.h>
#include <nccl_device/core.h>
#endif
#include <cstddef>
#include <cstdio>

#include "functions.h"  // with the real header: does not compile where a declaration differs

#define SIZE(type) std::printf(#type " %zu %zu\n", sizeof(type), alignof(type))
#define FIELD(type, field) std::printf(#type "." #field " %zu\n", offsetof(type, field))
#define NUMBER(name) std::printf(#name " %lld\n", static_cast<long long>(name))

int main() {
  SIZE(ncclUniqueId);
  SIZE(ncclResult_t);
  SIZE(ncclRedOp_t);
  SIZE(ncclDataType_t);
  SIZE(ncclScalarResidence_t);
  SIZE(ncclConfig_t);
  SIZE(ncclSimInfo_t);
  SIZE(ncclTeam_t);
  FIELD(ncclConfig_t, size);
  FIELD(ncclConfig_t, magic);
  FIELD(ncclConfig_t, version);
  FIELD(ncclConfig_t, blocking);
  FIELD(ncclConfig_t, cgaClusterSize);
  FIELD(ncclConfig_t, minCTAs);
  FIELD(ncclConfig_t, maxCTAs);
  FIELD(ncclConfig_t, netName);
  FIELD(ncclConfig_t, splitShare);
  FIELD(ncclConfig_t, trafficClass);
  FIELD(ncclConfig_t, commName);
  FIELD(ncclConfig_t, collnetEnable);
  FIELD(ncclConfig_t, CTAPolicy);
  FIELD(ncclConfig_t, shrinkShare);
  FIELD(ncclConfig_t, nvlsCTAs);
  FIELD(ncclConfig_t, nChannelsPerNetPeer);
  FIELD(ncclConfig_t, nvlinkCentricSched);
  FIELD(ncclSimInfo_t, magic);
  FIELD(ncclSimInfo_t, version);
  FIELD(ncclSimInfo_t, estimatedTime);
  FIELD(ncclTeam_t, nRanks);
  FIELD(ncclTeam_t, rank);
  FIELD(ncclTeam_t, stride);
  NUMBER(NCCL_VERSION_CODE);
  NUMBER(NCCL_UNIQUE_ID_BYTES);
  NUMBER(NCCL_CONFIG_UNDEF_INT);
  NUMBER(NCCL_SPLIT_NOCOLOR);
  NUMBER(NCCL_WIN_DEFAULT);
  NUMBER(NCCL_WIN_COLL_SYMMETRIC);
  NUMBER(NCCL_SHRINK_DEFAULT);
  NUMBER(NCCL_SHRINK_ABORT);
  NUMBER(NCCL_REVOKE_DEFAULT);
  NUMBER(ncclSuccess);
  NUMBER(ncclUnhandledCudaError);
  NUMBER(ncclSystemError);
  NUMBER(ncclInternalError);
  NUMBER(ncclInvalidArgument);
  NUMBER(ncclInvalidUsage);
  NUMBER(ncclRemoteError);
  NUMBER(ncclInProgress);
  NUMBER(ncclNumResults);
  NUMBER(ncclSum);
  NUMBER(ncclProd);
  NUMBER(ncclMax);
  NUMBER(ncclMin);
  NUMBER(ncclAvg);
  NUMBER(ncclNumOps);
  NUMBER(ncclMaxRedOp);
  NUMBER(ncclInt8);
  NUMBER(ncclUint8);
  NUMBER(ncclInt32);
  NUMBER(ncclUint32);
  NUMBER(ncclInt64);
  NUMBER(ncclUint64);
  NUMBER(ncclFloat16);
  NUMBER(ncclFloat32);
  NUMBER(ncclFloat64);
  NUMBER(ncclBfloat16);
  NUMBER(ncclFloat8e4m3);
  NUMBER(ncclFloat8e5m2);
  NUMBER(ncclNumTypes);
  NUMBER(ncclScalarDevice);
  NUMBER(ncclScalarHostImmediate);
#ifdef ZBCCL_TEST_REAL_HEADER
  const ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  const unsigned magic = config.magic;
#else
  const unsigned magic = zbccl::nccl::kConfigMagic;
#endif
  std::printf("magic %u\n", magic);
  return 0;
}
