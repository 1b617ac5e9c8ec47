#include "premultiplied.h"

#include <zbccl/zbccl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "define.h"
#include "group.h"
#include "scale.h"

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

ncclResult_t find_alive(const Call& call, const Operator** op) {
  *op = find_operator(static_cast<const ncclComm*>(call.comm), call.op);
  if (*op != nullptr) return ncclSuccess;
  return fail(ncclInvalidUsage, "the operator was destroyed before its call");
}

// A block of the GPU's pool until what is on the stream then is done, or, in a graph, as long as
// the communicator.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (data_ != nullptr) zbcclTorchFree(data_, static_cast<ssize_t>(bytes_), device_, stream_);
  }
  ncclResult_t take(ncclComm* comm, size_t bytes, cudaStream_t stream, void** data) {
    device_ = comm->device;
    bytes_ = bytes;
    stream_ = stream;
    ZBCCL_NCCL_TRY(result_of(zbcclMemAllocDevice(data, bytes, device_)));
    if (driver::is_capturing(stream, device_)) {
      comm->kept.push_back(*data);
    } else {
      data_ = *data;
    }
    return ncclSuccess;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  int device_ = -1;
  cudaStream_t stream_ = nullptr;
};

// On the device: the products go where the sums will be, or, where that is too small or not this
// rank's, to a block of the pool.
ncclResult_t run_scaled(const Call& call) {
  const Operator* op = nullptr;
  ZBCCL_NCCL_TRY(find_alive(call, &op));
  cudaStream_t stream = stream_of(call);
  const size_t count = elements_of(call);
  const bool fits =
      call.kind == Kind::kAllReduce || (call.kind == Kind::kReduce && call.peer == call.comm->rank);
  if (!driver::is_device_memory(call.send) || (fits && !driver::is_device_memory(call.recv))) {
    return fail(ncclInvalidArgument, "input and output have to lie on the GPU, both of them");
  }
  Scratch scratch;
  void* to = call.recv;
  if (!fits) {
    ZBCCL_NCCL_TRY(scratch.take(call.comm, count * element_size(call.type), stream, &to));
  }
  Factor factor;
  factor.bits = op->scalar;
  if (op->residence == ncclScalarDevice) factor.place = op->place;
  {
    const driver::Current current(call.comm->device);
    if (!launch_scale(call.send, to, count, call.type, factor, stream)) {
      return fail(ncclUnhandledCudaError, "CUDA refuses to multiply the input by the factor");
    }
  }
  Call ready = call;
  ready.send = to;
  ready.op = ncclSum;
  return result_of(start(ready, stream));
}

// The call with its input multiplied into a block of its own, which peers read in place.
ncclResult_t multiply_input(const Call& call, Call* ready, std::vector<Block>* blocks) {
  const Operator* op = nullptr;
  ZBCCL_NCCL_TRY(find_alive(call, &op));
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
  std::vector<Call> host;
  std::vector<Block> blocks;
  for (const Call& call : calls) {
    if (call.comm->device >= 0 && on_device(call)) {
      ZBCCL_NCCL_TRY(run_scaled(call));
      continue;
    }
    Call ready = call;
    ZBCCL_NCCL_TRY(multiply_input(call, &ready, &blocks));
    host.push_back(ready);
  }
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
  if (comm->device >= 0) {
    const driver::Current current(comm->device);
    if (!load_scale()) return fail(ncclUnhandledCudaError, "CUDA does not load a kernel");
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
