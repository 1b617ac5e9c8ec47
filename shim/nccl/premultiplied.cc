#include "premultiplied.h"

#include <zbccl/zbccl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "define.h"
#include "forward.h"
#include "group.h"

namespace zbccl::nccl {
namespace {

using Block = std::unique_ptr<void, decltype(&zbcclMemFree)>;

size_t elements_of(const Call& call) {
  const auto nranks = static_cast<size_t>(call.comm->nranks);
  return call.kind == Kind::kReduceScatter ? call.count * nranks : call.count;
}

ncclResult_t factor_of(const Operator& op, const void** factor) {
  if (op.residence == ncclScalarHostImmediate) {
    *factor = op.scalar.data();
    return ncclSuccess;
  }
  if (driver::is_device_memory(op.place)) {
    return fail(ncclInvalidArgument,
                "the factor lies in memory of a GPU, but the call is on host memory");
  }
  *factor = op.place;
  return ncclSuccess;
}

// The call with its input multiplied into a block of its own, which peers read in place.
ncclResult_t multiply_input(const Call& call, Call* ready, std::vector<Block>* blocks) {
  const Operator* const op = find_operator(static_cast<const ncclComm*>(call.comm), call.op);
  if (op == nullptr) return fail(ncclInvalidUsage, "the operator was destroyed before its call");
  ZBCCL_NCCL_TRY(check_pointer(call.send, "sendbuff"));
  const void* factor = nullptr;
  ZBCCL_NCCL_TRY(factor_of(*op, &factor));
  ZBCCL_NCCL_TRY(drain_stream(call));
  const size_t count = elements_of(call);
  void* block = nullptr;
  ZBCCL_NCCL_TRY(result_of(zbcclMemAlloc(&block, count * element_size(call.type))));
  blocks->emplace_back(block, &zbcclMemFree);
  multiply(call.send, block, count, call.type, factor);
  *ready = call;
  ready->send = block;
  ready->op = ncclSum;
  return ncclSuccess;
}

}  // namespace

const Operator* find_operator(const ncclComm* comm, ncclRedOp_t op) {
  const auto index = static_cast<size_t>(op) - static_cast<size_t>(ncclNumOps);
  const bool known = op >= ncclNumOps && index < comm->operators.size();
  return known && comm->operators[index].alive ? &comm->operators[index] : nullptr;
}

Operator* find_operator(ncclComm* comm, ncclRedOp_t op) {
  return const_cast<Operator*>(find_operator(static_cast<const ncclComm*>(comm), op));
}

ncclResult_t run_premultiplied(std::span<const Call> calls) {
  std::vector<Call> forwarded;
  std::vector<Call> host;
  std::vector<Block> blocks;
  for (const Call& call : calls) {
    if (call.comm->device >= 0 && on_device(call)) {
      forwarded.push_back(call);
      continue;
    }
    Call ready = call;
    ZBCCL_NCCL_TRY(multiply_input(call, &ready, &blocks));
    host.push_back(ready);
  }
  if (!forwarded.empty()) ZBCCL_NCCL_TRY(forward_reductions(forwarded));
  return host.empty() ? ncclSuccess : run_on_host(host);
}

namespace {

ncclResult_t create(ncclRedOp_t* op, const void* scalar, ncclDataType_t type,
                    ncclScalarResidence_t residence, ncclComm* comm) {
  ZBCCL_NCCL_TRY(check_usable(comm));
  ZBCCL_NCCL_TRY(check_pointer(op, "op"));
  ZBCCL_NCCL_TRY(check_pointer(scalar, "scalar"));
  if (static_cast<unsigned>(type) >= ncclNumTypes) {
    return fail(ncclInvalidArgument, "{} is not an element type", static_cast<int>(type));
  }
  if (residence != ncclScalarDevice && residence != ncclScalarHostImmediate) {
    return fail(ncclInvalidArgument, "{} is no residence of a factor", static_cast<int>(residence));
  }
  Operator made;
  made.alive = true;
  made.type = type;
  made.residence = residence;
  made.place = scalar;
  if (residence == ncclScalarHostImmediate) {
    std::memcpy(made.scalar.data(), scalar, element_size(type));
  }
  auto& all = comm->operators;
  auto free = std::find_if(all.begin(), all.end(), [](const Operator& it) { return !it.alive; });
  if (free == all.end()) free = all.insert(all.end(), Operator());
  *free = made;
  *op = static_cast<ncclRedOp_t>(ncclNumOps + (free - all.begin()));
  return ncclSuccess;
}

ncclResult_t destroy(ncclRedOp_t op, ncclComm* comm) {
  ZBCCL_NCCL_TRY(check_handle(comm));
  Operator* const found = find_operator(comm, op);
  if (found == nullptr) {
    return fail(ncclInvalidArgument, "{} is no operator that was made with this communicator",
                static_cast<int>(op));
  }
  if (found->forwarded) forget_operator(comm, *found);
  *found = {};
  return ncclSuccess;
}

}  // namespace
}  // namespace zbccl::nccl

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclRedOpCreatePreMulSum,
                  (ncclRedOp_t * op, void* scalar, ncclDataType_t type,
                   ncclScalarResidence_t residence, ncclComm_t comm)) {
  return zbccl::nccl::guard([&] { return zbccl::nccl::create(op, scalar, type, residence, comm); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclRedOpDestroy, (ncclRedOp_t op, ncclComm_t comm)) {
  return zbccl::nccl::guard([&] { return zbccl::nccl::destroy(op, comm); });
}
