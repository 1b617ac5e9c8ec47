#include "collectives/cuda/buffers.h"

#include <string>

#include "memory/device_memory.h"

namespace zbccl::cuda {

using collectives::Collective;
using collectives::NormCall;

namespace {

constexpr uintptr_t kRowAlignment = 16;
constexpr uintptr_t kCodeAlignment = 8;

Status check_place(const Collective& call, const void* data, const char* what, int device) {
  const int found = memory::device_of(data);
  if (found == device) return {};
  return error(Code::kInvalidArgument,
               "{}: the {} at {} is {}, but the communicator serves CUDA device {} and another "
               "buffer lies there; give all on that device, or all in host memory",
               operation_name(call.operation), what, data,
               found < 0 ? std::string("host memory") : format("memory of device {}", found),
               device);
}

Status check_norm_buffers(const Collective& call, int device) {
  if (call.count == 0) return {};
  const auto check = [&](const void* data, uintptr_t alignment, const char* what) -> Status {
    if (data == nullptr) return {};
    ZBCCL_RETURN_IF_ERROR(check_place(call, data, what, device));
    if (reinterpret_cast<uintptr_t>(data) % alignment == 0) return {};
    return error(Code::kInvalidArgument,
                 "{}: {} at {} does not lie on {} bytes, as device memory "
                 "has to",
                 operation_name(call.operation), what, data, alignment);
  };
  ZBCCL_RETURN_IF_ERROR(check(call.send, kRowAlignment, "x"));
  ZBCCL_RETURN_IF_ERROR(check(call.norm->residual, kRowAlignment, "residual"));
  ZBCCL_RETURN_IF_ERROR(check(call.norm->weight, kRowAlignment, "weight"));
  for (const NormBuffer& output : norm_outputs(*call.norm)) {
    ZBCCL_RETURN_IF_ERROR(check(output.data, output.alignment, output.name));
  }
  return {};
}

void add(std::vector<DeviceRange>* ranges, const void* data, size_t bytes) {
  if (data != nullptr && bytes > 0) ranges->push_back({data, bytes});
}

CallRanges norm_ranges(const Collective& call) {
  const NormCall& norm = *call.norm;
  const size_t element = type_size(call.type);
  CallRanges ranges;
  add(&ranges.in, call.send, call.count * element);
  add(&ranges.in, norm.residual, call.count * element);
  add(&ranges.in, norm.weight, call.count == 0 ? 0 : norm.norm.hidden * element);
  for (const NormBuffer& output : norm_outputs(norm)) {
    if (output.has_gaps) add(&ranges.in, output.data, output.bytes);
    add(&ranges.out, output.data, output.bytes);
  }
  ranges.all = ranges.in;
  ranges.all.insert(ranges.all.end(), ranges.out.begin(), ranges.out.end());
  return ranges;
}

}  // namespace

Status check_buffers(const Collective& call, int rank, int nranks, int device) {
  if (call.norm != nullptr) return check_norm_buffers(call, device);
  if (collectives::send_bytes(call, rank, nranks) > 0) {
    ZBCCL_RETURN_IF_ERROR(check_place(call, call.send, "input", device));
  }
  return collectives::recv_bytes(call, rank, nranks) > 0
             ? check_place(call, call.recv, "output", device)
             : Status();
}

std::array<NormBuffer, kNormOutputs> norm_outputs(const NormCall& call) {
  const kernels::NormOutputs& to = call.outputs;
  const size_t hidden = call.norm.hidden;
  const size_t groups = hidden / kScaleGroup;
  const size_t elements = call.tokens * hidden;
  const size_t scales = call.tokens == 0 || groups == 0 ? 0
                                                        : (call.tokens - 1) * to.row_stride +
                                                              (groups - 1) * to.group_stride + 1;
  return {{{"residual_out", to.residual_out, 2 * elements, kRowAlignment, false},
           {"out", to.out, 2 * elements, kRowAlignment, false},
           {"codes", to.codes, elements, kCodeAlignment, false},
           {"scales", to.scales, scales * sizeof(float), sizeof(float), true},
           {"scales_ue8m0", to.exponents, scales, 1, true}}};
}

CallRanges ranges_of(const Collective& call, int rank, int nranks) {
  if (call.norm != nullptr) return norm_ranges(call);
  CallRanges ranges;
  add(&ranges.in, call.send, collectives::send_bytes(call, rank, nranks));
  ranges.all = ranges.in;
  add(&ranges.all, call.recv, collectives::recv_bytes(call, rank, nranks));
  if (call.recv_blocks == nullptr) {
    add(&ranges.out, call.recv, collectives::recv_bytes(call, rank, nranks));
    return ranges;
  }
  // What lies between the blocks stays as it is.
  for (int r = 0; r < nranks; ++r) {
    const collectives::Extent block = collectives::recv_block(call, r);
    if (block.bytes > 0) add(&ranges.out, collectives::at(call.recv, block.offset), block.bytes);
  }
  return ranges;
}

}  // namespace zbccl::cuda
