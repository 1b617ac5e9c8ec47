#include "forward.h"

#include <zbccl/zbccl.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "driver.h"
#include "group.h"

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

// All at once, since each waits for the others.
ncclResult_t need_shadows(const std::vector<Call>& calls, const char* asker) {
  std::vector<ncclComm*> without;
  for (const Call& call : calls) {
    const bool known = std::find(without.begin(), without.end(), call.comm) != without.end();
    if (call.comm->shadow == nullptr && !known) without.push_back(call.comm);
  }
  std::vector<ncclResult_t> results(without.size(), ncclSuccess);
  const auto make = [&](size_t i) {
    const Real* real = nullptr;
    results[i] = guard([&] { return make_shadow(without[i], asker, &real); });
  };
  if (without.size() == 1) {
    make(0);
  } else {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < without.size(); ++i) threads.emplace_back(make, i);
    for (std::thread& thread : threads) thread.join();
  }
  for (const ncclResult_t result : results) ZBCCL_NCCL_TRY(result);
  return ncclSuccess;
}

ncclResult_t forward_operator(const Real& real, ncclComm* comm, Operator* op) {
  if (op->forwarded) return ncclSuccess;
  void* const scalar = op->residence == ncclScalarDevice ? const_cast<void*>(op->place)
                                                         : static_cast<void*>(op->scalar.data());
  ZBCCL_NCCL_TRY(from_real(
      real, real.ncclRedOpCreatePreMulSum(&op->real, scalar, op->type, op->residence, comm->shadow),
      "an operator that was made"));
  op->forwarded = true;
  return ncclSuccess;
}

ncclResult_t forward(const Real& real, const Call& call) {
  Operator* const op = find_operator(call.comm, call.op);
  if (op == nullptr) return fail(ncclInvalidUsage, "the operator was destroyed before its call");
  ZBCCL_NCCL_TRY(forward_operator(real, call.comm, op));
  ncclComm_t shadow = call.comm->shadow;
  ncclResult_t result = ncclInternalError;
  if (call.kind == Kind::kAllReduce) {
    result = real.ncclAllReduce(call.send, call.recv, call.count, call.type, op->real, shadow,
                                call.stream);
  } else if (call.kind == Kind::kReduceScatter) {
    result = real.ncclReduceScatter(call.send, call.recv, call.count, call.type, op->real, shadow,
                                    call.stream);
  } else {
    result = real.ncclReduce(call.send, call.recv, call.count, call.type, op->real, call.peer,
                             shadow, call.stream);
  }
  return from_real(real, result, "a reduction that was handed on");
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

ncclResult_t forward_reductions(const std::vector<Call>& calls) {
  constexpr const char* kAsker = "an operator that was made, on device memory";
  const Real* real = nullptr;
  ZBCCL_NCCL_TRY(need_shadows(calls, kAsker));
  ZBCCL_NCCL_TRY(find_real(kAsker, &real));
  ZBCCL_NCCL_TRY(from_real(*real, real->ncclGroupStart(), kAsker));
  ncclResult_t first = ncclSuccess;
  for (const Call& call : calls) {
    const ncclResult_t result = forward(*real, call);
    if (first == ncclSuccess) first = result;
  }
  const ncclResult_t ended = from_real(*real, real->ncclGroupEnd(), kAsker);
  return first != ncclSuccess ? first : ended;
}

void forget_operator(ncclComm* comm, const Operator& op) {
  const Real* real = nullptr;
  if (comm->shadow == nullptr || find_real("", &real) != ncclSuccess) return;
  real->ncclRedOpDestroy(op.real, comm->shadow);
}

}  // namespace zbccl::nccl
