#include "forward.h"

#include <zbccl/zbccl.h>

#include <vector>

#include "driver.h"

namespace zbccl::nccl {
namespace {

ncclResult_t from_real(const Real& real, ncclResult_t result, const char* what) {
  if (result == ncclSuccess || result == ncclInProgress) return ncclSuccess;
  const char* const text = real.ncclGetLastError(nullptr);
  return fail(result, "{}: NVIDIA's NCCL: {}", what, text != nullptr ? text : "no message");
}

// What the ranks tell each other before any of them waits in the other library.
struct Offer {
  int32_t able;
  ncclUniqueId id;  // rank 0's
};

ncclResult_t make_shadow(ncclComm* comm, const char* asker, const Real** real) {
  const ncclResult_t found = find_real(asker, real);
  Offer mine = {found == ncclSuccess ? 1 : 0, {}};
  if (mine.able != 0 && comm->rank == 0) {
    mine.able = (*real)->ncclGetUniqueId(&mine.id) == ncclSuccess ? 1 : 0;
  }
  std::vector<Offer> offers(static_cast<size_t>(comm->nranks));
  const zbcclResult_t told =
      zbcclAllGather(&mine, offers.data(), sizeof mine, zbcclUint8, comm->inner, nullptr);
  ZBCCL_NCCL_TRY(found);
  ZBCCL_NCCL_TRY(result_of(told));
  for (size_t r = 0; r < offers.size(); ++r) {
    if (offers[r].able != 0) continue;
    return fail(ncclInvalidUsage, "{}: rank {} has no NCCL of NVIDIA's that works", asker, r);
  }
  const driver::Current current(comm->device);
  ncclComm_t shadow = nullptr;
  ZBCCL_NCCL_TRY(from_real(
      **real, (*real)->ncclCommInitRank(&shadow, comm->nranks, offers.front().id, comm->rank),
      asker));
  comm->shadow = shadow;
  return ncclSuccess;
}

}  // namespace

ncclResult_t need_shadow(ncclComm* comm, const char* asker, const Real** real) {
  return comm->shadow != nullptr ? find_real(asker, real) : make_shadow(comm, asker, real);
}

void drop_shadow(ncclComm* comm) {
  if (comm->shadow == nullptr) return;
  const Real* real = nullptr;
  if (find_real("", &real) == ncclSuccess) real->ncclCommDestroy(comm->shadow);
  comm->shadow = nullptr;
}

}  // namespace zbccl::nccl
