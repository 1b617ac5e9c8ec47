// Stands for NVIDIA's library where there is none: bears its name, and tells by its answers that it
// was asked.
#include "nccl/fake_nccl.h"

#include <cstdlib>
#include <cstring>

#include "functions.h"

namespace {

struct Communicator {
  int nranks;
  int rank;
  ncclUniqueId id;
};

Communicator* own(ncclComm_t comm) { return reinterpret_cast<Communicator*>(comm); }

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = kFakeVersion;
  return ncclSuccess;
}

const char* ncclGetLastError(ncclComm_t /*comm*/) { return "the fake is out of order"; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::memset(id, 0, sizeof *id);
  std::strcpy(id->internal, "of the fake");
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int nranks, ncclUniqueId id, int rank) {
  if (std::strcmp(id.internal, "of the fake") != 0) return ncclInvalidArgument;
  *comm = reinterpret_cast<ncclComm_t>(new Communicator{nranks, rank, id});
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  delete own(comm);
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() { return ncclSuccess; }
ncclResult_t ncclGroupEnd() { return ncclSuccess; }

ncclResult_t ncclAllReduce(const void*, void*, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t,
                           cudaStream_t) {
  return ncclInternalError;
}
ncclResult_t ncclReduce(const void*, void*, size_t, ncclDataType_t, ncclRedOp_t, int, ncclComm_t,
                        cudaStream_t) {
  return ncclInternalError;
}
ncclResult_t ncclReduceScatter(const void*, void*, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t,
                               cudaStream_t) {
  return ncclInternalError;
}
ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t*, void*, ncclDataType_t, ncclScalarResidence_t,
                                      ncclComm_t) {
  return ncclInternalError;
}
ncclResult_t ncclRedOpDestroy(ncclRedOp_t, ncclComm_t) { return ncclInternalError; }

ncclResult_t ncclDevCommCreate(ncclComm_t comm, const ncclDevCommRequirements_t* /*requirements*/,
                               ncclDevComm_t* out) {
  auto* const told = reinterpret_cast<FakeDevComm*>(out);
  *told = {kFakeVersion, own(comm)->rank, own(comm)->nranks};
  return ncclSuccess;
}
ncclResult_t ncclDevCommDestroy(ncclComm_t comm, const ncclDevComm_t* dev_comm) {
  const auto* const told = reinterpret_cast<const FakeDevComm*>(dev_comm);
  return told->rank == own(comm)->rank ? ncclSuccess : ncclInvalidArgument;
}

ncclTeam_t ncclTeamWorld(ncclComm_t comm) { return {own(comm)->nranks, own(comm)->rank, 1}; }
ncclTeam_t ncclTeamLsa(ncclComm_t /*comm*/) { return {1, 0, 1}; }
ncclTeam_t ncclTeamRail(ncclComm_t comm) { return {own(comm)->nranks, own(comm)->rank, 1}; }
int ncclTeamRankToWorld(ncclComm_t /*comm*/, ncclTeam_t /*team*/, int rank) { return rank + 1000; }
int ncclTeamRankToLsa(ncclComm_t /*comm*/, ncclTeam_t /*team*/, int rank) { return rank + 2000; }

int ncclLLA2ACalcSlots(int max_elements, int max_element_size) {
  return max_elements * max_element_size;
}

}  // extern "C"
