// The interface for users' kernels. What can be told without it is answered; the rest is NVIDIA's
// NCCL's.
#include "communicator.h"
#include "define.h"
#include "forward.h"
#include "group.h"

namespace zbccl::nccl {
namespace {

ncclResult_t missing(const char* name) {
  return fail(ncclInvalidUsage, "{}: this NCCL of NVIDIA's is too old for it", name);
}

ncclResult_t create(ncclComm* comm, const ncclDevCommRequirements_t* requirements,
                    ncclDevComm_t* out) {
  ZBCCL_NCCL_TRY(check_usable(comm));
  return run_or_defer([=]() -> ncclResult_t {
    const Real* real = nullptr;
    ZBCCL_NCCL_TRY(need_shadow(comm, "ncclDevCommCreate", &real));
    if (real->ncclDevCommCreate == nullptr) return missing("ncclDevCommCreate");
    return real->ncclDevCommCreate(comm->shadow, requirements, out);
  });
}

ncclResult_t destroy(ncclComm* comm, const ncclDevComm_t* dev_comm) {
  ZBCCL_NCCL_TRY(check_settled(comm));
  const Real* real = nullptr;
  ZBCCL_NCCL_TRY(find_real("ncclDevCommDestroy", &real));
  if (comm->shadow == nullptr || real->ncclDevCommDestroy == nullptr) {
    return fail(ncclInvalidArgument, "ncclDevCommDestroy: this communicator has made none");
  }
  return real->ncclDevCommDestroy(comm->shadow, dev_comm);
}

// Where the communicator was handed on, its teams are those of the other library.
const Real* owner(const ncclComm* comm) {
  const Real* real = nullptr;
  if (check_handle(comm) != ncclSuccess || comm->shadow == nullptr) return nullptr;
  return find_real("a team", &real) == ncclSuccess && real->ncclTeamWorld != nullptr ? real
                                                                                     : nullptr;
}

// zbccl's ranks are on one machine and reach each other by loads and stores.
ncclTeam_t everyone(const ncclComm* comm) {
  if (check_settled(comm) != ncclSuccess) return {0, 0, 1};
  return {comm->nranks, comm->rank, 1};
}

}  // namespace
}  // namespace zbccl::nccl

using namespace zbccl::nccl;

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclDevCommCreate,
                  (ncclComm_t comm, const ncclDevCommRequirements_t* requirements,
                   ncclDevComm_t* out)) {
  return guard([&] { return create(comm, requirements, out); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclDevCommDestroy,
                  (ncclComm_t comm, const ncclDevComm_t* dev_comm)) {
  return guard([&] { return destroy(comm, dev_comm); });
}

ZBCCL_NCCL_DEFINE(ncclTeam_t, ncclTeamWorld, (ncclComm_t comm)) {
  const Real* const real = owner(comm);
  return real != nullptr ? real->ncclTeamWorld(comm->shadow) : everyone(comm);
}

ZBCCL_NCCL_DEFINE(ncclTeam_t, ncclTeamLsa, (ncclComm_t comm)) {
  const Real* const real = owner(comm);
  return real != nullptr ? real->ncclTeamLsa(comm->shadow) : everyone(comm);
}

ZBCCL_NCCL_DEFINE(ncclTeam_t, ncclTeamRail, (ncclComm_t comm)) {
  if (const Real* const real = owner(comm)) return real->ncclTeamRail(comm->shadow);
  const ncclTeam_t all = everyone(comm);
  return {all.nRanks > 0 ? 1 : 0, 0, all.nRanks > 0 ? all.nRanks : 1};
}

ZBCCL_NCCL_DEFINE(int, ncclTeamRankToWorld, (ncclComm_t comm, ncclTeam_t team, int rank)) {
  if (const Real* const real = owner(comm)) {
    return real->ncclTeamRankToWorld(comm->shadow, team, rank);
  }
  return everyone(comm).rank + (rank - team.rank) * team.stride;
}

ZBCCL_NCCL_DEFINE(int, ncclTeamRankToLsa, (ncclComm_t comm, ncclTeam_t team, int rank)) {
  if (const Real* const real = owner(comm)) {
    return real->ncclTeamRankToLsa(comm->shadow, team, rank);
  }
  return everyone(comm).rank + (rank - team.rank) * team.stride;
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclLsaBarrierCreateRequirement,
                  (ncclTeam_t team, int count, ncclLsaBarrierHandle_t* handle,
                   ncclDevResourceRequirements_t* requirements)) {
  return guard([&]() -> ncclResult_t {
    constexpr const char* kName = "ncclLsaBarrierCreateRequirement";
    const Real* real = nullptr;
    ZBCCL_NCCL_TRY(find_real(kName, &real));
    if (real->ncclLsaBarrierCreateRequirement == nullptr) return missing(kName);
    return real->ncclLsaBarrierCreateRequirement(team, count, handle, requirements);
  });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclGinBarrierCreateRequirement,
                  (ncclComm_t comm, ncclTeam_t team, int count, ncclGinBarrierHandle_t* handle,
                   ncclDevResourceRequirements_t* requirements)) {
  return guard([&]() -> ncclResult_t {
    constexpr const char* kName = "ncclGinBarrierCreateRequirement";
    ZBCCL_NCCL_TRY(check_usable(comm));
    return run_or_defer([=]() -> ncclResult_t {
      const Real* real = nullptr;
      ZBCCL_NCCL_TRY(need_shadow(comm, kName, &real));
      if (real->ncclGinBarrierCreateRequirement == nullptr) return missing(kName);
      return real->ncclGinBarrierCreateRequirement(comm->shadow, team, count, handle, requirements);
    });
  });
}

// 0 where there is no NCCL that knows; its number is never 0.
ZBCCL_NCCL_DEFINE(int, ncclLLA2ACalcSlots, (int max_elements, int max_element_size)) {
  const Real* real = nullptr;
  const auto found = guard([&] { return find_real("ncclLLA2ACalcSlots", &real); });
  if (found != ncclSuccess || real->ncclLLA2ACalcSlots == nullptr) return 0;
  return real->ncclLLA2ACalcSlots(max_elements, max_element_size);
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclLLA2ACreateRequirement,
                  (int blocks, int slots, ncclLLA2AHandle_t* handle,
                   ncclDevResourceRequirements_t* requirements)) {
  return guard([&]() -> ncclResult_t {
    constexpr const char* kName = "ncclLLA2ACreateRequirement";
    const Real* real = nullptr;
    ZBCCL_NCCL_TRY(find_real(kName, &real));
    if (real->ncclLLA2ACreateRequirement == nullptr) return missing(kName);
    return real->ncclLLA2ACreateRequirement(blocks, slots, handle, requirements);
  });
}
